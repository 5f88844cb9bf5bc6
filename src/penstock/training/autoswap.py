"""A training loop within a byte budget: recorded, planned for, and swapped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from penstock.budget import Budget, format_size
from penstock.errors import StorageError, StreamStateError
from penstock.footprint import limit_allocator, return_free_memory
from penstock.planning.swap_explain import explain_swaps
from penstock.planning.swap_plan import SwapPlan
from penstock.report.curve import Curve
from penstock.report.swapping import swap_curve, swap_tracks
from penstock.report.timeline import Tracks
from penstock.training.asking import Asking
from penstock.training.correcting import Corrector
from penstock.training.entry import Kept
from penstock.training.iteration import Iteration
from penstock.training.meter import Meter
from penstock.training.mover import Mover
from penstock.training.observing import Observer
from penstock.training.planner import Planner
from penstock.training.pool import Pool, PoolStats
from penstock.training.stepping import Steps
from penstock.training.swap_stats import SwapStats
from penstock.training.swapfile import SwapFile
from penstock.training.swapper import Swapper
from penstock.training.tape import BUFFERS, GRADIENTS, PARAMETERS, SAVED, STATE, TAKEN, Event
from penstock.training.timing import Timing

logger = logging.getLogger("penstock")

MAPPED_NBYTES, KEPT_NBYTES = 1 << 20, 8 << 20
"""Without a pool, activations are mapped one by one, so that their memory is free when they leave."""


_active: list[AutoSwap] = []
_recorders: list[Callable[[Planner], None]] = []


def is_active() -> bool:
    """Whether this process is within a block of `autoswap`."""
    return bool(_active)


def when_planned(callback: Callable[[Planner], None]) -> Callable[[], None]:
    """Have `callback` called with what is known of an iteration, before it is planned for, until what it returns is."""
    _recorders.append(callback)
    return lambda: _recorders.remove(callback)


class AutoSwap:
    """A training loop within a byte budget; see `autoswap`.

    Attributes:
        plan: what is followed, once iterations repeat; None before.
        stats: what happened so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        budget: Budget,
        offload_folder: Path | None,
        scores: str,
        recompute: bool = False,
        parameters: bool = False,
    ) -> None:
        self._model, self._optimizers, self.budget = model, list(optimizers), budget
        self._folder, self._scores = offload_folder, scores
        self._recompute, self._moves_parameters = recompute, parameters
        self.plan: SwapPlan | None = None
        self.stats = SwapStats()
        self._observer: Observer | None = None
        self._planner: Planner | None = None
        self._swapper: Swapper | None = None
        self._mover: Mover | None = None
        self._meter = Meter(0)
        self._corrector = Corrector(budget.nbytes, self._meter)
        self._hooks = saved_tensors_hooks(self._saved, self._taken)
        self._asking: Asking | None = None
        self._steps: Steps | None = None
        self._has_asked = False  # for state, between two iterations
        self._pool: Pool | None = None
        self._outer: tuple[Any, Any] | None = None  # hooks of the user's own, around the block

    # -- the block --

    def __enter__(self) -> AutoSwap:
        """Begin to record.

        Raises:
            StreamStateError: this process is within such a block already.
        """
        if _active:
            raise StreamStateError("autoswap blocks cannot be nested: give one of them all optimizers of the loop")
        self._pool = Pool.preloaded()
        if self._pool is None:
            limit_allocator(MAPPED_NBYTES, KEPT_NBYTES)
        return_free_memory()
        observer = self._observer = Observer(
            len(self._optimizers), self._known, self._pool, parameters=self._moves_parameters
        )
        self._meter = Meter(observer.live_nbytes)
        self._corrector = Corrector(self.budget.nbytes, self._meter)
        self._steps = Steps(self._optimizers, event=self._event, uses_state=self._uses_state, stepped=self._stepped)
        self._asking = Asking(self._optimizers, bring=self._bring, forget_states=self._forget_states)
        if self._moves_parameters:
            self._asking.watch(self._model)
        _active.append(self)
        self._outer = torch._C._autograd._top_saved_tensors_default_hooks(True)
        self._hooks.__enter__()
        observer.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo everything; what graphs of the block still need is brought back to memory. Once is enough."""
        if self not in _active:
            return
        _active.clear()
        try:
            if self._observer is not None:
                self._observer.end()
                self._observer = None
            self._hooks.__exit__(kind, error, trace)
            if self._asking is not None:
                self._asking.end()
            if self._steps is not None:
                self._steps.end()
        finally:
            if self._pool is not None:
                self._pool.leave()
                self._pool.retire()
            try:
                self._end_swapping()
            except StorageError as failure:
                if kind is None:
                    raise
                logger.warning("%s: what it held is lost", failure)  # what went wrong first is raised

    def _known(self) -> Iterator[tuple[str, torch.Tensor]]:
        for parameter in self._model.parameters():
            yield PARAMETERS, parameter
            if parameter.grad is not None:
                yield GRADIENTS, parameter.grad
        yield from ((BUFFERS, buffer) for buffer in self._model.buffers())
        for optimizer in self._optimizers:
            for state in optimizer.state.values():
                yield from ((STATE, value) for value in state.values() if isinstance(value, torch.Tensor))

    # -- what happens --

    def _saved(self, tensor: torch.Tensor) -> Any:
        packed = self._outer[0](tensor) if self._outer is not None else tensor
        if isinstance(packed, torch.Tensor):
            packed = packed.detach()  # torch hands over the variable itself, which its node must not hold
        if not _can_leave(packed):
            self._event(Event(SAVED, 0))
            return packed
        if self._swapper is not None:
            self._begin_if_new(self._swapper)
            return self._swapper.saved(packed)
        if self._observer is not None:
            storage = packed.untyped_storage()
            self._observer.event(Event(SAVED, storage.nbytes()), storage)
        return Kept(packed)

    def _taken(self, kept: Any) -> torch.Tensor:
        if not isinstance(kept, Kept):
            self._event(Event(TAKEN, 0))
        elif self._swapper is not None:
            kept = self._swapper.taken(kept)
        else:
            event, (kept, _) = Event(TAKEN, kept.nbytes), kept.take()
            if self._observer is not None:
                self._observer.event(event, kept.untyped_storage())
        return kept if self._outer is None else self._outer[1](kept)  # type: ignore[no-any-return]

    def _event(self, event: Event) -> None:
        if self._swapper is not None:
            self._begin_if_new(self._swapper)
            self._swapper.event(event)
        elif self._observer is not None:
            self._observer.event(event)

    def _begin_if_new(self, swapper: Swapper) -> None:
        """Before the first event of an iteration: what happened since the last one was not the iteration's."""
        if swapper.is_between:
            if not self._corrector.is_done:
                self._meter.reset()
            if self._has_asked:
                self._has_asked = False
                swapper.leave_idle()

    def _uses_state(self, parameters: Iterable[torch.Tensor]) -> None:
        if self._swapper is not None:
            self._swapper.have_states(parameters)
        elif self._planner is not None:
            self._planner.movables.bring(parameters)

    def _stepped(self) -> None:
        if self._swapper is not None:
            if not self._corrector.is_done and self._swapper.is_between:
                self._correct(self._swapper)
        elif self._observer is not None:
            self._observe(self._observer)
            self._meter.reset()

    def _bring(self, parameters: Iterable[torch.Tensor] | None = None) -> None:
        """Somebody is about to read these, and their state, or all."""
        if self._planner is not None and self._planner.movables.bring(parameters) > 0:
            self._has_asked = True

    def _forget_states(self) -> None:
        if self._planner is not None and self._swapper is not None:
            self._planner.exclude(self._planner.movables.forget_states())
            self._swapper.forget_states()
            logger.warning("the optimizer's state was loaded anew: it stays in memory from now on, beyond the budget")

    # -- from the record to the plan --

    def _observe(self, observer: Observer) -> None:
        """After a step: go on to what comes next, if enough is known."""
        if observer.stepped():
            self._observer = None
            if observer.found is not None:
                self._begin_planning(observer.found)
            elif self._pool is not None:
                self._pool.leave()

    def _begin_planning(self, timing: Timing) -> None:
        self._planner = Planner(
            timing,
            self._optimizers,
            budget=self.budget,
            folder=self._folder,
            pool=self._pool,
            taken_nbytes=self._meter.taken_nbytes(),
            recompute=self._recompute,
            parameters=self._moves_parameters,
        )
        for callback in _recorders:
            callback(self._planner)
        self._begin_swapping(self._planner)

    def _begin_swapping(self, planner: Planner) -> None:
        plan = planner.plan(self._scores)
        swapper, self._swapper = self._swapper, None
        if swapper is not None:
            swapper.bring_back()
        if self._mover is None:
            self._mover = Mover(SwapFile(self._folder))
        self.plan = plan
        self._swapper = planner.follow(plan, self._mover, self.stats)
        return_free_memory()

    def _end_swapping(self) -> None:
        """What graphs and optimizers still need is brought back to memory."""
        swapper, self._swapper = self._swapper, None
        try:
            if swapper is not None:
                swapper.bring_back()
        finally:
            try:
                if self._planner is not None:
                    self._planner.movables.bring()
                    self._planner.movables.release()
            finally:
                if self._mover is not None:
                    self._mover.close()
                    self._mover = None

    def _correct(self, swapper: Swapper) -> None:
        """After an iteration: plan anew where what was measured asks for it."""
        return_free_memory()
        if self._pool is not None:
            self._pool.retire()
        plan, planner, mover = self.plan, self._planner, self._mover
        assert plan is not None and planner is not None and mover is not None, "there is something that is followed"  # noqa: PT018
        if self._corrector.looks(planner, plan, swapper, mover):
            self._begin_swapping(planner)

    @property
    def iteration(self) -> Iteration | None:
        """What the plan was made for; None before."""
        return self._planner.iteration if self._planner is not None else None

    @property
    def overhead_nbytes(self) -> int:
        """What is kept free for what an iteration takes beside its storages."""
        return self._planner.overhead_nbytes if self._planner is not None else 0

    @property
    def pool_stats(self) -> PoolStats | None:
        """What the pool did with the allocations of this plan; None where it is not preloaded."""
        is_followed = self._pool is not None and self._planner is not None and self._planner.lifetimes is not None
        return self._pool.stats() if self._pool is not None and is_followed else None

    def curve(self, title: str = "training") -> Curve:
        """What an iteration would take within any budget; takes some seconds.

        Raises:
            StreamStateError: no two iterations were alike so far.
        """
        return swap_curve(self._known_planner().record(), model=title)

    def predicted(self, title: str = "training") -> Tracks:
        """An iteration by the plan, as predicted: `save` it as a trace for ui.perfetto.dev or chrome://tracing.

        Raises:
            StreamStateError: likewise.
        """
        planner, plan = self._known_planner(), self.plan
        assert plan is not None, "what is known is planned for"
        record = planner.record()
        return swap_tracks(
            record.problem, plan, record.names, f"{title} in {format_size(self.budget.nbytes)}, predicted"
        )

    def _known_planner(self) -> Planner:
        if self._planner is None or self.plan is None:
            raise StreamStateError("nothing is planned yet: no two iterations were alike so far")
        return self._planner

    def explain(self) -> str:
        """What is planned, for people."""
        if self.plan is None:
            return "nothing is planned yet: no two iterations were alike so far"
        kinds = self.iteration.kinds if self.iteration is not None else {}
        return explain_swaps(self.plan, self.overhead_nbytes, kinds)


def _can_leave(kept: Any) -> bool:
    if type(kept) is not torch.Tensor or kept.layout is not torch.strided or kept.device.type != "cpu":
        return False
    return not (kept.is_conj() or kept.is_neg())  # which are no part of the bytes
