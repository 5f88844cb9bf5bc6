"""A training loop within a byte budget: recorded, planned for, and swapped."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from penstock.budget import Budget, format_size
from penstock.errors import BudgetInfeasibleError, StorageError, StreamStateError
from penstock.footprint import limit_allocator, read_memory, reset_peak, return_free_memory
from penstock.planning.swap import plan_swaps
from penstock.planning.swap_explain import explain_swaps
from penstock.planning.swap_plan import SwapPlan
from penstock.planning.swap_problem import Link
from penstock.planning.swap_schedule import gone_by, gone_in_time
from penstock.training.entry import Kept
from penstock.training.iteration import Iteration, last_iteration, tokens
from penstock.training.lifetimes import Lifetimes, read_lifetimes
from penstock.training.links import measure_links
from penstock.training.mover import Mover
from penstock.training.period import find_period
from penstock.training.placing import own_places, pool_places
from penstock.training.pool import Pool, PoolStats
from penstock.training.states import idle_states
from penstock.training.swapfile import SwapFile, room_nbytes
from penstock.training.swapper import Swapper, SwapStats
from penstock.training.tape import SAVED, STEP_BEGINS, STEP_ENDED, TAKEN, Event, Recorder
from penstock.training.timing import Timing

logger = logging.getLogger("penstock")

MAPPED_NBYTES, KEPT_NBYTES = 1 << 20, 8 << 20
"""Without a pool, activations are mapped one by one, so that their memory is free when they leave."""

FIRST_OVERHEAD = 12
"""With a pool, one part in so many of the budget is for what is not in it, until an iteration was measured."""

CORRECTIONS = 3
"""So often a plan is made anew because an iteration took more than the budget."""

PATIENCE = 12
"""Steps of optimizers that are recorded before it is said that nothing repeats."""


_active: list[AutoSwap] = []


class AutoSwap:
    """A training loop within a byte budget; see `autoswap`.

    Attributes:
        plan: what is followed, once iterations repeat; None before.
        iteration: what the plan was made for; None before.
        stats: what happened so far.
        overhead_nbytes: what an iteration was measured to take beside its storages.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        budget: Budget,
        offload_folder: Path | None,
        scores: str,
    ) -> None:
        self._model, self._optimizers, self.budget = model, list(optimizers), budget
        self._folder, self._scores = offload_folder, scores
        self.plan: SwapPlan | None = None
        self.iteration: Iteration | None = None
        self.stats = SwapStats()
        self.overhead_nbytes = 0
        self._observer: Recorder | Timing | None = None
        self._swapper: Swapper | None = None
        self._mover: Mover | None = None
        self._hooks = saved_tensors_hooks(self._saved, self._taken)
        self._handles: list[Any] = []
        self._steps = self._base_nbytes = self._corrections = self._planned_at = 0
        self._is_peak_reset = False
        self._pool: Pool | None = None
        self._lifetimes: Lifetimes | None = None
        self._allocations: dict[int, int] = {}
        self._states: dict[int, torch.Tensor] = {}  # which may leave, by their numbers as storages
        self._links: tuple[Link, Link] | None = None
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
        recorder = self._observer = Recorder()
        recorder.know(self._known())
        memory = read_memory()
        self._base_nbytes = memory.anonymous_nbytes - recorder.live_nbytes if memory is not None else 0
        for index, optimizer in enumerate(self._optimizers):
            begins, ended = Event(STEP_BEGINS, index), Event(STEP_ENDED, index)
            self._handles += [
                optimizer.register_step_pre_hook(lambda *_, event=begins: self._event(event)),
                optimizer.register_step_post_hook(lambda *_, event=ended: self._event(event)),
                optimizer.register_state_dict_pre_hook(lambda _: self._have_states()),
                optimizer.register_load_state_dict_pre_hook(lambda *_: self._have_states()),
                optimizer.register_load_state_dict_post_hook(lambda _: self._forget_states()),
            ]
        _active.append(self)
        self._outer = torch._C._autograd._top_saved_tensors_default_hooks(True)
        self._hooks.__enter__()
        recorder.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo everything; what graphs of the block still need is brought back to memory."""
        _active.clear()
        try:
            self._end_observing()
            self._hooks.__exit__(kind, error, trace)
            while self._handles:
                self._handles.pop().remove()
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

    def _known(self) -> Iterator[torch.Tensor]:
        yield from self._model.parameters()
        yield from self._model.buffers()
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                yield parameter.grad
        for optimizer in self._optimizers:
            for state in optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    # -- what happens --

    def _saved(self, tensor: torch.Tensor) -> Any:
        packed = self._outer[0](tensor) if self._outer is not None else tensor
        if isinstance(packed, torch.Tensor):
            packed = packed.detach()  # torch hands over the variable itself, which its node must not hold
        if not _can_leave(packed):
            self._event(Event(SAVED, 0))
            return packed
        if self._swapper is not None:
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
            self._swapper.event(event)
            if event.kind == STEP_ENDED and self._corrections < CORRECTIONS:
                self._correct()
                self._is_peak_reset = reset_peak()
        elif self._observer is not None:
            self._observer.event(event)
            if event.kind == STEP_ENDED:
                self._steps += 1
                self._observe(self._observer)
                self._is_peak_reset = reset_peak()

    def _have_states(self) -> None:
        if self._swapper is not None:
            self._swapper.have_states()

    def _forget_states(self) -> None:
        if self._swapper is not None:
            self._swapper.forget_states()
            self._states.clear()
            if self.iteration is not None:
                self._exclude({absence.storage for absence in self.iteration.absences if absence.leaves == 0})
            logger.warning("the optimizer's state was loaded anew: it stays in memory from now on, beyond the budget")

    # -- from the record to the plan --

    def _observe(self, observer: Recorder | Timing) -> None:
        """After a step: go on to what comes next, if enough is known."""
        if self._steps >= PATIENCE * len(self._optimizers) and not (isinstance(observer, Timing) and observer.is_done):
            logger.warning(
                "no two iterations in %d steps were alike, so nothing can be planned: training goes on unswapped, "
                "beyond its budget; pad or bucket the batches to a fixed size",
                self._steps,
            )
            self._end_observing()
            if self._pool is not None:
                self._pool.leave()
        elif isinstance(observer, Timing):
            if observer.is_done:
                self._end_observing()
                self._begin_planning(observer)
        else:
            period = find_period(*tokens(observer.events), is_marked=True)
            if period is not None:
                tape = observer.tape()
                self._end_observing()
                self._steps = 0
                self._observer = Timing(last_iteration(tape, period), self._pool)

    def _end_observing(self) -> None:
        observer, self._observer = self._observer, None
        if isinstance(observer, Recorder):
            observer.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _begin_planning(self, timing: Timing) -> None:
        iteration = replace(timing.iteration, seconds=timing.seconds())
        if self._pool is not None:
            entries = self._pool.recorded()
            self._lifetimes = read_lifetimes(entries, len(iteration.events), timing.marked)
            self._allocations = timing.allocations
        if self._lifetimes is not None:
            peaks = self._lifetimes.segment_peaks() + iteration.lasting_nbytes
            iteration = replace(iteration, peak_nbytes=tuple(int(peak) for peak in peaks))
            self.overhead_nbytes = self.budget.nbytes // FIRST_OVERHEAD
        else:
            self.overhead_nbytes = max(self._taken_nbytes() - max(iteration.peak_nbytes), 0)
        idle = list(idle_states(self._optimizers, iteration.events))
        self._states = {absence.storage: tensor for absence, tensor in idle}
        absences = (*iteration.absences, *(absence for absence, _ in idle))
        self.iteration = replace(iteration, absences=absences)
        self._links = measure_links(self._folder)
        self._begin_swapping()

    def _taken_nbytes(self) -> int:
        """The most memory since the peak was reset, beyond what was taken before by others; 0 if nobody knows."""
        memory = read_memory() if self._is_peak_reset else None
        return memory.peak_nbytes - memory.file_nbytes - self._base_nbytes if memory is not None else 0

    def _begin_swapping(self) -> None:
        iteration, links = self.iteration, self._links
        assert iteration is not None, "there is something to plan for"
        assert links is not None, "links were measured"
        problem = iteration.problem(*links, self.budget.nbytes - self.overhead_nbytes)
        try:
            plan = plan_swaps(problem, scores=self._scores)
        except BudgetInfeasibleError as error:
            raise self._refusal(error.needed_nbytes) from error
        if self._lifetimes is not None:
            plan = gone_in_time(problem, plan)
        self._end_swapping()
        mover = self._mover = Mover(SwapFile(self._folder, sum(room_nbytes(swap.nbytes) for swap in plan.swaps)))
        self.plan = plan
        if self._pool is not None and self._lifetimes is not None:
            first = self._lifetimes.first_allocations
            seek = self._pool.seek
            places = pool_places(self._pool, self._lifetimes, plan, self._allocations, gone_by(plan))
            self._pool.retire()
            self._swapper = Swapper(
                iteration.events,
                plan,
                mover,
                places,
                self.stats,
                states=self._states,
                seek=lambda segment: seek(first[segment]),
            )
        else:
            places = own_places(plan, iteration)
            self._swapper = Swapper(iteration.events, plan, mover, places, self.stats, states=self._states)
        self._planned_at = self.stats.iterations
        return_free_memory()

    def _refusal(self, live_nbytes: int) -> BudgetInfeasibleError:
        """So much is live at one moment whatever is away; what is kept free beside it comes on top."""
        beside_nbytes = self.overhead_nbytes
        if self._lifetimes is not None:
            beside_nbytes = max(beside_nbytes, live_nbytes // (FIRST_OVERHEAD - 1) + 1)
        needed_nbytes = live_nbytes + beside_nbytes
        return BudgetInfeasibleError(
            f"an iteration has {format_size(live_nbytes)} in memory at one moment that are all in use, and takes "
            f"{format_size(beside_nbytes)} beside them; the budget is {format_size(self.budget.nbytes)}: set one of "
            f"{format_size(needed_nbytes)}, or take smaller batches",
            needed_nbytes=needed_nbytes,
        )

    def _end_swapping(self) -> None:
        """What graphs still need is brought back to memory."""
        try:
            if self._swapper is not None:
                self._swapper.bring_back()
        finally:
            self._swapper = None
            if self._mover is not None:
                self._mover.close()
                self._mover = None

    def _correct(self) -> None:
        """After an iteration: plan anew where it was measured to take more than the budget."""
        plan, followed = self.plan, self.stats.iterations - self._planned_at
        if plan is None or followed < 1:
            return
        return_free_memory()
        if self._pool is not None:
            self._pool.retire()
        if self._swapper is not None and self._swapper.futile and self.iteration is not None:
            self._exclude(self._swapper.futile)
            self._begin_swapping()
            return
        taken_nbytes = self._taken_nbytes() if followed > 1 else 0  # the first still has memory of what was before
        if taken_nbytes > self.budget.nbytes:
            self._corrections += 1
            self.overhead_nbytes = taken_nbytes - plan.peak_nbytes
            self._begin_swapping()
        elif followed > 2:
            self._corrections = CORRECTIONS

    def _exclude(self, storages: Collection[int]) -> None:
        """These are not away, whatever the plan says."""
        assert self.iteration is not None, "there was something to plan for"
        absences = tuple(absence for absence in self.iteration.absences if absence.storage not in storages)
        self.iteration = replace(self.iteration, absences=absences)

    @property
    def pool_stats(self) -> PoolStats | None:
        """What the pool did with the allocations of this plan; None where it is not preloaded."""
        return self._pool.stats() if self._pool is not None and self._lifetimes is not None else None

    def explain(self) -> str:
        """What is planned, for people."""
        if self.plan is None:
            return "nothing is planned yet: no two iterations were alike so far"
        return explain_swaps(self.plan, self.overhead_nbytes)


def _can_leave(kept: Any) -> bool:
    if type(kept) is not torch.Tensor or kept.layout is not torch.strided or kept.device.type != "cpu":
        return False
    return not (kept.is_conj() or kept.is_neg())  # which are no part of the bytes
