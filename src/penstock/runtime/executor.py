"""Runs a module's passes along a schedule: holds weights as layers begin and lets go as they end.

The executor decides nothing. It follows the schedule; where the module departs from it, it seeks to where the
module is now.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from penstock.errors import StreamStateError, UnsupportedModelError
from penstock.runtime.binding import BoundWeight, FileViews
from penstock.runtime.events import EventLog
from penstock.runtime.holdings import Holdings
from penstock.runtime.passes import NO_GRADIENTS, apart, computing
from penstock.runtime.pipeline import READY, Pipeline
from penstock.runtime.schedule import NO_SCHEDULE, BoundCall, Schedule, Site


class Executor:
    """The state of one streamed module between and during passes.

    Args:
        weights: every streamed weight.
        views: the way out for weights that the schedule has no place for.

    Attributes:
        holdings: which of them are readable.
        passes: passes run.
        events: where to note passes and layers, if anywhere.
        guard: to be called before each layer, by the thread whose pass it is.
    """

    def __init__(self, weights: list[BoundWeight], views: FileViews) -> None:
        self._weights = weights
        self.holdings = Holdings(weights, views)
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._depth = 0
        self._in_pass = False
        self._process = os.getpid()
        self._expected = 0
        self._used: list[int] = []
        self._is_cold = True
        self._is_torn = False  # an exception has come between any two steps
        self._schedule: Schedule = NO_SCHEDULE
        self._order: tuple[int, ...] = ()
        self.passes = 0
        self.events: EventLog | None = None
        self.guard: Callable[[], None] = _nothing

    def install(self, schedule: Schedule, pipeline: Pipeline) -> None:
        """Follow `schedule` from the next pass on, all of it still to be loaded."""
        self.holdings.install(schedule, pipeline)
        self._schedule, self._pipeline = schedule, pipeline
        self._order = schedule.warm_order
        self._is_cold = True
        self._restart()

    def uninstall(self) -> None:
        """Follow nothing, so that nothing keeps an arena in memory."""
        self._schedule = NO_SCHEDULE
        self.__dict__.pop("_pipeline", None)
        self.holdings.uninstall()

    def settle(self, schedule: Schedule) -> None:
        """Follow `schedule`, which has the same loads, now that every resident weight is in memory."""
        self._schedule = schedule
        for load in schedule.cold_order:  # a layer that no pass has called yet is not attended to any more
            if schedule.planned[load].resident:
                schedule.loads[load].bind()
        self._pipeline.follow(schedule.gates)

    @property
    def is_cold(self) -> bool:
        """Whether a resident weight may still be missing."""
        return self._is_cold

    # -- passes --

    def run_pass(
        self,
        forward: Callable[..., Any],
        args: Any,
        kwargs: Any,
        *,
        before: Callable[[], None],
        after: Callable[[], None],
    ) -> Any:
        """One call of the streamed module; `before` and `after` run while this thread is alone with it."""
        self._check_process()  # first: another thread may have held the lock when the process forked
        with self._lock:
            if self._in_pass:  # the module calls itself
                return forward(*args, **kwargs)
            self.check_usable()
            before()
            complete = False
            try:
                self._mend()
                self._pipeline.forgive()
                if self._expected:  # layers were called outside a pass
                    self._expected = 0
                    self._restart()
                self._in_pass, self._owner = True, threading.get_ident()
                if self._is_cold and self._schedule.preloads:
                    self._preload()
                if self.events is not None:
                    self.events.pass_begun()
                self.holdings.begin_pass()
                with computing():
                    result = forward(*args, **kwargs)
                complete = True
            finally:
                if self.events is not None:
                    self.events.pass_ended()
                self._in_pass, self._owner = False, None
                self._end_pass(complete=complete)
            after()
            return result

    def check_usable(self) -> None:
        """Raises unless a pass may run here and now."""
        self._check_process()
        if torch.is_grad_enabled() and any(weight.parameter.requires_grad for weight in self._weights):
            raise UnsupportedModelError(NO_GRADIENTS)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise StreamStateError(
                "this module was streamed before the process forked, and reader threads do not survive a fork: "
                "call penstock.stream in the child, or start it by 'spawn'"
            )

    def _end_pass(self, *, complete: bool) -> None:
        self._is_torn = True  # until all of this is done
        self.passes += 1
        self.holdings.end_pass()
        used, self._used = self._used, []
        expected, self._expected = self._expected, 0
        in_order = expected == len(self._schedule.calls)
        self._pipeline.ended(None)
        if not complete:
            self._mend()
        elif self._is_cold:
            states, planned = self._pipeline.states, self._schedule.planned
            self._is_cold = any(planned[load].resident and states[load] != READY for load in self._schedule.cold_order)
            if not in_order:
                self._restart()
        elif not in_order or len(self._order) != len(self._schedule.warm_order):
            # The next pass most likely goes the way of this one: decoding after prefill, an encoder run once.
            followed = tuple(dict.fromkeys(load for load in used if not self._schedule.planned[load].resident))
            if followed != self._order:
                self._order = followed
                self._restart()
        self._is_torn = False

    def _preload(self) -> None:
        """Wait until everything is in memory."""
        for load in self._schedule.cold_order:
            self._pipeline.hold(load)
            self._pipeline.release(load, keep=True)

    def _mend(self) -> None:
        """A pass was cut off, perhaps between a layer's begin and the place where its end is seen to: begin anew."""
        if not self._is_torn:
            return
        self._pipeline.recover()
        self.holdings.recover()
        self._expected = 0
        self._order = self._schedule.warm_order
        self._restart()
        self._is_torn = False

    def _restart(self) -> None:
        cold = self._schedule.cold_order
        self._pipeline.start(cold if self._is_cold else self._order, self._order)

    # -- layers --

    def begin(self, site: Site) -> BoundCall:
        """A layer is about to compute: its weights are in memory and bound when this returns."""
        self._enter()
        try:
            self.guard()
            expected = self._expected
            schedule = self._schedule
            if expected < len(schedule.sites) and schedule.sites[expected] is site:
                self._expected = expected + 1
            else:
                expected = self._depart(site)
            if self._pipeline.pace.is_driven:
                self._pipeline.begun(expected)
            if self.events is not None:
                self.events.layer_called(site.module)
            call = self.holdings.hold(schedule.calls[expected])
            self._used.extend(call.loads)
            if self.events is not None:
                self.events.layer_begun(site.module)
            return call
        except BaseException:
            self._is_torn = True
            self._leave()
            raise

    def own(self, call: BoundCall, result: Any) -> Any:
        """`result` of the layer, without views of weights whose place others will take."""
        return apart(result, self._pipeline.arena) if call.loads else result

    def end(self, call: BoundCall) -> None:
        """The layer has computed: what no other layer holds becomes unreadable and its space free."""
        try:
            if self.events is not None:
                self.events.layer_ended()
            self.holdings.let_go(call.loads, call.last_use)
            if self._pipeline.pace.is_driven:
                self._pipeline.ended(call.position)
        except BaseException:
            self._is_torn = True
            raise
        finally:
            self._leave()

    def map_absent(self, parameter: nn.Parameter) -> None:
        """A weight is read that is not in memory: inside a pass, make it readable until the pass ends."""
        if self._owner == threading.get_ident():
            calls, expected = self._schedule.calls, self._expected
            self.holdings.provide(parameter, calls[expected] if expected < len(calls) else None)

    def _depart(self, site: Site) -> int:
        """The call of `site` that the module most likely makes now; the pipeline goes on from there."""
        schedule, now = self._schedule, self._expected
        call = next((c for c in site.calls if c >= now), site.calls[0])
        needed = set(schedule.calls[call].loads)
        forward = call >= now
        order = schedule.cold_order if self._is_cold else schedule.warm_order
        self._pipeline.seek(
            [load for load in order if load in needed or schedule.first_call[load] >= call],
            keep=lambda load: load in needed or (forward and schedule.first_call[load] >= call),
        )
        self._expected = call + 1
        return call

    def _enter(self) -> None:
        """A layer called outside a pass (`model.encode_image`, `get_encoder()`) is a small pass of its own."""
        if self._owner != threading.get_ident():
            self._lock.acquire()
            try:
                self.check_usable()
            except BaseException:
                self._lock.release()
                raise
            self._owner = threading.get_ident()
            self._depth = 0
            self._mend()
            self._conditions = computing()
            self._conditions.__enter__()
        self._depth += 1

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0 and not self._in_pass:
            self._used.clear()
            self.holdings.end_pass()
            self._conditions.__exit__(None, None, None)
            self._owner = None
            self._lock.release()

    # -- changing the schedule --

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """While no pass runs, and none begins.

        Raises:
            StreamStateError: a pass of this very thread runs.
        """
        if os.getpid() != self._process:  # no other thread has survived the fork, but one may have held the lock
            yield
            return
        with self._lock:
            if self._owner == threading.get_ident():
                raise StreamStateError(
                    "a pass of this module is running in this thread: change the stream before or after it"
                )
            yield

    def suspend(self) -> None:
        """Unbind everything; the pipeline may be closed after this."""
        self.holdings.suspend()


def _nothing() -> None:
    """Nobody looks."""
