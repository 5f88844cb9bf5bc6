"""Runs a module's passes along a schedule: binds weights as layers begin and lets go as they end.

The executor decides nothing. It follows the schedule; where the module departs from it, it seeks to where the
module is now; where the schedule knows no place for a weight, it falls back on a mapping of the checkpoint.
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
from penstock.runtime.pipeline import READY, Pipeline
from penstock.runtime.schedule import BoundCall, Schedule, Site

_NO_SCHEDULE = Schedule((), (), (), (), (), (), ())


class Executor:
    """The state of one streamed module between and during passes.

    Args:
        weights: every streamed weight.
        views: the way out for weights that the schedule has no place for.
    """

    def __init__(self, weights: list[BoundWeight], views: FileViews) -> None:
        self._weights = weights
        self._by_parameter = {id(weight.parameter): weight for weight in weights}
        self._views = views
        self._mapped: list[BoundWeight] = []
        self._looked_up: set[int] = set()
        self._early: list[int] = []
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._depth = 0
        self._in_pass = False
        self._process = os.getpid()
        self._expected = 0
        self._used: list[int] = []
        self._is_cold = True
        self._schedule: Schedule = _NO_SCHEDULE
        self._order: tuple[int, ...] = ()
        self.mapped_reads = 0
        self.passes = 0

    def install(self, schedule: Schedule, pipeline: Pipeline) -> None:
        """Follow `schedule` from the next pass on, all of it still to be loaded."""
        self._schedule, self._pipeline = schedule, pipeline
        self._order = schedule.warm_order
        self._is_cold = True
        self._restart()

    def uninstall(self) -> None:
        """Follow nothing, so that nothing keeps an arena in memory."""
        self._schedule = _NO_SCHEDULE
        self.__dict__.pop("_pipeline", None)

    def settle(self, schedule: Schedule) -> None:
        """Follow `schedule`, which has the same loads, now that every resident weight is in memory."""
        self._schedule = schedule

    @property
    def is_cold(self) -> bool:
        """Whether a resident weight may still be missing."""
        return self._is_cold

    # -- passes --

    def run_pass(self, forward: Callable[..., Any], before: Callable[[], None], args: Any, kwargs: Any) -> Any:
        """One call of the streamed module. `before` runs once the pass is this thread's alone."""
        with self._lock:
            if self._in_pass:  # the module calls itself
                return forward(*args, **kwargs)
            self.check_usable()
            before()
            self._in_pass, self._owner = True, threading.get_ident()
            complete = False
            try:
                result = forward(*args, **kwargs)
                complete = True
                return result
            finally:
                self._in_pass, self._owner = False, None
                self._end_pass(complete=complete)

    def check_usable(self) -> None:
        """Raises unless a pass may run here and now."""
        if os.getpid() != self._process:
            raise StreamStateError(
                "this module was streamed before the process forked, and reader threads do not survive a fork: "
                "call penstock.stream in the child, or start it by 'spawn'"
            )
        if torch.is_grad_enabled() and any(weight.parameter.requires_grad for weight in self._weights):
            raise UnsupportedModelError(
                "weights stream for inference, but gradients are enabled: call the module under "
                "`with torch.inference_mode():` (or torch.no_grad()), or set requires_grad_(False)"
            )

    def _end_pass(self, *, complete: bool) -> None:
        self.passes += 1
        self._unmap()
        self._drop_early()
        used, self._used = self._used, []
        expected, self._expected = self._expected, 0
        in_order = expected == len(self._schedule.calls)
        if not complete:
            self._order = self._schedule.warm_order
            self._restart()
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

    def _restart(self) -> None:
        cold = self._schedule.cold_order
        self._pipeline.start(cold if self._is_cold else self._order, self._order)

    # -- layers --

    def begin(self, site: Site) -> BoundCall:
        """A layer is about to compute: its weights are in memory and bound when this returns."""
        self._enter()
        try:
            expected = self._expected
            schedule = self._schedule
            if expected < len(schedule.sites) and schedule.sites[expected] is site:
                self._expected = expected + 1
            else:
                expected = self._depart(site)
            call = schedule.calls[expected]
            taken = 0
            try:
                for load in call.loads:
                    self._pipeline.hold(load)
                    taken += 1
                    bound = schedule.loads[load]
                    bound.weight.bind(bound.data)
            except BaseException:
                self._let_go(call.loads[:taken], frozenset())
                raise
            self._used.extend(call.loads)
            if self._early:
                self._drop_early()
            return call
        except BaseException:
            self._leave()
            raise

    def end(self, call: BoundCall) -> None:
        """The layer has computed: what no other layer holds becomes unreadable and its space free."""
        try:
            self._let_go(call.loads, call.last_use)
        finally:
            self._leave()

    def _let_go(self, loads: tuple[int, ...], last_use: frozenset[int]) -> None:
        pipeline, schedule = self._pipeline, self._schedule
        for load in reversed(loads):
            if schedule.planned[load].resident:
                pipeline.held[load] -= 1
                continue
            if pipeline.held[load] == 1:
                schedule.loads[load].weight.unbind()
            pipeline.release(load, keep=load not in last_use)

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
        self._depth += 1

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0 and not self._in_pass:
            self._owner = None
            self._lock.release()

    # -- weights that the schedule has no place for --

    def map_absent(self, parameter: nn.Parameter) -> None:
        """A weight is read that is not in memory: inside a pass, map it until the pass ends."""
        weight = self._by_parameter.get(id(parameter))
        if weight is None or self._owner != threading.get_ident() or id(parameter) in self._looked_up:
            return
        if self._take_early(weight):
            return
        weight.bind(self._views.view(weight.source))
        self._mapped.append(weight)
        self.mapped_reads += 1

    def _take_early(self, weight: BoundWeight) -> bool:
        """A parent asks for a weight of the very next layer (its dtype, mostly): it is bound a moment early."""
        schedule = self._schedule
        if self._expected >= len(schedule.calls):
            return False
        for load in schedule.calls[self._expected].loads:
            if schedule.loads[load].weight is weight:
                self._pipeline.hold(load)
                weight.bind(schedule.loads[load].data)
                self._early.append(load)
                return True
        return False

    def _drop_early(self) -> None:
        early, self._early = self._early, []
        self._let_go(tuple(early), frozenset())

    @contextmanager
    def looking_up(self, parameter: nn.Parameter) -> Iterator[None]:
        """While only rows of it are read, the parameter itself may stay absent."""
        self._looked_up.add(id(parameter))
        try:
            yield
        finally:
            self._looked_up.discard(id(parameter))

    def _unmap(self) -> None:
        while self._mapped:
            self._mapped.pop().unbind()

    # -- changing the schedule --

    def exclusively(self) -> threading.RLock:
        """The lock that passes run under."""
        return self._lock

    def suspend(self) -> None:
        """Unbind everything; the pipeline may be closed after this."""
        self._unmap()
        for weight in self._weights:
            weight.unbind()
