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
from penstock.training.entry import Kept, is_movable
from penstock.training.following import Following
from penstock.training.iteration import Iteration
from penstock.training.meter import Meter
from penstock.training.observing import Observer
from penstock.training.planner import Planner
from penstock.training.pool import Pool, PoolStats
from penstock.training.stepping import Steps
from penstock.training.swap_stats import SwapStats
from penstock.training.tape import BUFFERS, GRADIENTS, PARAMETERS, SAVED, STATE, TAKEN, Event
from penstock.training.timing import Timing
from penstock.training.ways import Ways

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
        ways: Ways,
    ) -> None:
        self._model, self._optimizers, self.budget = model, list(optimizers), budget
        self._folder, self._scores, self._ways = offload_folder, scores, ways
        self.stats = SwapStats()
        self._observer: Observer | None = None
        self._following: Following | None = None
        self._meter = Meter(0)
        self._hooks = saved_tensors_hooks(self._saved, self._taken)
        self._asking: Asking | None = None
        self._steps: Steps | None = None
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
        self._observer = Observer(len(self._optimizers), self._known, self._pool, parameters=self._ways.parameters)
        self._meter = Meter(self._observer.live_nbytes)
        self._steps = Steps(
            self._optimizers,
            event=self._event,
            uses_state=self._uses_state,
            stepped=self._stepped,
            atomic=self._ways.atomic_steps,
        )
        self._asking = Asking(self._optimizers, bring=self._bring, forget_states=self._forget_states)
        if self._ways.parameters:
            self._asking.watch(self._model)
        _active.append(self)
        self._outer = torch._C._autograd._top_saved_tensors_default_hooks(True)
        self._hooks.__enter__()
        self._observer.begin()
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
                if self._following is not None:
                    self._following.end()
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
        if not is_movable(packed):
            self._event(Event(SAVED))
            return packed
        if self._following is not None:
            return self._following.saved(packed)
        if self._observer is not None:
            storage = packed.untyped_storage()
            self._observer.event(Event(SAVED, storage.nbytes()), storage)
        return Kept(packed)

    def _taken(self, kept: Any) -> torch.Tensor:
        if not isinstance(kept, Kept):
            self._event(Event(TAKEN))
        elif self._following is not None:
            kept = self._following.taken(kept)
        else:
            event, (kept, _) = Event(TAKEN, kept.nbytes), kept.take()
            if self._observer is not None:
                self._observer.event(event, kept.untyped_storage())
        return kept if self._outer is None else self._outer[1](kept)  # type: ignore[no-any-return]

    def _event(self, event: Event) -> None:
        if self._following is not None:
            self._following.event(event)
        elif self._observer is not None:
            self._observer.event(event)

    def _uses_state(self, parameters: Iterable[torch.Tensor]) -> None:
        if self._following is not None:
            self._following.steps(parameters)

    def _stepped(self) -> None:
        if self._following is not None:
            self._following.stepped()
        elif self._observer is not None:
            self._observe(self._observer)
            self._meter.reset()

    def _bring(self, weights: Iterable[torch.Tensor] | None = None, *, at_once: bool = False) -> None:
        if self._following is not None:
            self._following.bring(weights, at_once=at_once)

    def _forget_states(self) -> None:
        if self._following is not None:
            self._following.forget_states()

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
        planner = Planner(
            timing,
            self._optimizers,
            ways=self._ways,
            budget=self.budget,
            folder=self._folder,
            pool=self._pool,
            taken_nbytes=self._meter.taken_nbytes(),
        )
        for callback in _recorders:
            callback(planner)
        self._following = Following(
            planner,
            scores=self._scores,
            budget_nbytes=self.budget.nbytes,
            folder=self._folder,
            stats=self.stats,
            meter=self._meter,
            pool=self._pool,
        )
        self._following.begin()

    # -- what there is to see --

    @property
    def plan(self) -> SwapPlan | None:
        """What is followed, once iterations repeat; None before."""
        return self._following.plan if self._following is not None else None

    @property
    def planner(self) -> Planner | None:
        """What is known of an iteration; None before."""
        return self._following.planner if self._following is not None else None

    @property
    def iteration(self) -> Iteration | None:
        """What the plan was made for; None before."""
        return self.planner.iteration if self.planner is not None else None

    @property
    def overhead_nbytes(self) -> int:
        """What is kept free for what an iteration takes beside its storages."""
        return self.planner.overhead_nbytes if self.planner is not None else 0

    @property
    def pool_stats(self) -> PoolStats | None:
        """What the pool did with the allocations of this plan; None where it is not preloaded."""
        is_followed = self.planner is not None and self.planner.lifetimes is not None
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
        if self.planner is None or self.plan is None:
            raise StreamStateError("nothing is planned yet: no two iterations were alike so far")
        return self.planner

    def explain(self) -> str:
        """What is planned, for people."""
        if self.plan is None:
            return "nothing is planned yet: no two iterations were alike so far"
        kinds = self.iteration.kinds if self.iteration is not None else {}
        return explain_swaps(self.plan, self.overhead_nbytes, kinds)
