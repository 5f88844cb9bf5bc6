"""From iterations that were observed to plans within the budget, made anew where measurements ask for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from penstock.budget import Budget, format_size
from penstock.errors import BudgetInfeasibleError
from penstock.planning.swap import plan_swaps
from penstock.planning.swap_plan import SwapPlan
from penstock.planning.swap_problem import Floats, Link, SwapProblem
from penstock.planning.swap_record import SwapRecord
from penstock.planning.swap_schedule import gone_in_time
from penstock.training.iteration import Iteration, back_before_steps
from penstock.training.lifetimes import Lifetimes, read_lifetimes
from penstock.training.links import measure_links
from penstock.training.movables import Movables
from penstock.training.mover import Mover
from penstock.training.placing import Placed, own_places, plan_places, pool_places
from penstock.training.pool import Pool
from penstock.training.recompute import Recipe
from penstock.training.swap_stats import SwapStats
from penstock.training.swapper import Swapper
from penstock.training.timing import Timing
from penstock.training.ways import Ways

_MORE_PLANS = 2
"""So often it is planned anew because of gaps between places."""

_SPARE, _WORTHWHILE = 50, 0.01
"""One part in so many of the room may be left, and more where no wait is left by which iterations could be faster."""

_MARGIN = 50
"""One part in so many of the budget stays free besides: for the kernel, and what grows a little with each plan."""


class Planner:
    """What is known of an iteration, and the plans for it.

    Args:
        timing: the iteration as it was observed.
        optimizers: of its steps.
        ways: what may be done beside moving activations and state.
        budget: to plan for.
        folder: that storages leave to.
        pool: which recorded it, if it is preloaded.
        taken_nbytes: what it was measured to take; 0 if nobody knows.

    Attributes:
        iteration: with all that could be away.
        movables: what could be, beside activations.
        overhead_nbytes: what is kept free for what is not in the plan, gaps between its places included.
        allocations: which recorded allocation each storage that may leave is.
        lifetimes: what the pool recorded of the iteration; None where there is no pool, or it saw no two alike.
    """

    def __init__(
        self,
        timing: Timing,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        ways: Ways,
        budget: Budget,
        folder: Path | None,
        pool: Pool | None,
        taken_nbytes: int,
    ) -> None:
        self._budget, self._pool = budget, pool
        iteration = replace(timing.iteration, seconds=timing.seconds())
        self.lifetimes: Lifetimes | None = None
        self._placed: Placed | None = None  # by the last plan
        self._beside_nbytes: int | None = None  # storages, and gaps between them; None: not measured
        self._gap_nbytes = 0  # that are foreseen
        if pool is not None:
            self.lifetimes = read_lifetimes(pool.recorded(), len(iteration.events), timing.marked)
        if self.lifetimes is not None:
            outside_nbytes = iteration.lasting_nbytes + self.lifetimes.again_nbytes
            peaks = self.lifetimes.segment_peaks() + outside_nbytes
            iteration = replace(iteration, peak_nbytes=tuple(int(peak) for peak in peaks))
            self.overhead_nbytes = 0  # nobody knows yet; each plan says
        else:
            self._beside_nbytes = self.overhead_nbytes = max(taken_nbytes - max(iteration.peak_nbytes), 0)
        self.movables = Movables(optimizers, iteration, parameters=ways.parameters)
        recipes = {n: r for n, r in iteration.recipes.items() if ways.recompute and not self._has_moving_source(r)}
        again = tuple(absence for absence in iteration.recomputable if absence.storage in recipes)
        iteration = replace(iteration, recomputable=again, recipes=recipes)
        gradients = ((number, id(parameter)) for number, parameter in self.movables.gradients())
        self.allocations = timing.allocations | {
            n: timing.gradients[key] for n, key in gradients if key in timing.gradients
        }
        self.iteration: Iteration = replace(
            iteration,
            absences=(*iteration.absences, *self.movables.absences),
            until=iteration.until | self.movables.until,
        )
        if ways.atomic_steps:
            self.iteration = back_before_steps(self.iteration)
        self._links: tuple[Link, Link] = measure_links(folder)

    def _has_moving_source(self, recipe: Recipe) -> bool:
        stay = (source.stays for source in recipe.sources() if source.stays is not None)
        return any(self.movables.weight(tensor.untyped_storage()) is not None for tensor in stay)

    def plan(self, scores: str) -> SwapPlan:
        """A plan within the budget.

        With a pool, addresses have gaps between them: where these are more than is kept free, or far less, others are
        made for other limits.

        Raises:
            BudgetInfeasibleError: there is none; says which budget has one.
        """
        problem = self._problem()
        self.overhead_nbytes = self._budget.nbytes - problem.limit_nbytes
        try:
            plan = plan_swaps(problem, scores=scores)
        except BudgetInfeasibleError as error:
            raise self._refusal(error.needed_nbytes) from error
        if self.lifetimes is None:
            return plan
        self._placed = self._fitting(self.lifetimes, problem, plan, scores)
        self.overhead_nbytes = self._budget.nbytes - self._placed.plan.limit_nbytes
        return self._placed.plan

    def _fitting(self, lifetimes: Lifetimes, problem: SwapProblem, plan: SwapPlan, scores: str) -> Placed:
        """Of a plan and some like it the fastest that fits with its gaps; if none does, the smallest."""
        is_measured = self._beside_nbytes is not None
        beside_nbytes = self._beside_nbytes if self._beside_nbytes is not None else self.overhead_nbytes // 2
        room_nbytes = self._budget.nbytes - beside_nbytes
        tried = [self._place(lifetimes, problem, plan)]
        for _ in range(_MORE_PLANS):
            last = tried[-1]
            spare_nbytes = room_nbytes - last.total_nbytes
            is_slow = last.plan.overhead > _WORTHWHILE and (is_measured or len(tried) > 1)
            if spare_nbytes >= 0 and not (is_slow and spare_nbytes > room_nbytes // _SPARE):
                break
            # A plan may have less in memory than it could: the next one is to have less than that.
            more_nbytes = spare_nbytes * 3 // 4 if spare_nbytes > 0 else spare_nbytes
            limit_nbytes = min(last.plan.limit_nbytes, last.plan.peak_nbytes) + more_nbytes
            problem = replace(problem, limit_nbytes=limit_nbytes)
            try:
                tried.append(self._place(lifetimes, problem, plan_swaps(problem, scores=scores)))
            except BudgetInfeasibleError:
                break
        fitting = [placed for placed in tried if placed.total_nbytes <= room_nbytes]
        if fitting:
            return min(fitting, key=lambda placed: placed.plan.predicted_seconds)
        return min(tried, key=lambda placed: placed.total_nbytes)

    def _problem(self) -> SwapProblem:
        """What there is to decide; gaps are foreseen to be as they were, if that leaves enough."""
        record = replace(self.record(), overhead_nbytes=self._beside_nbytes)
        return record.within(self._budget.nbytes, self._gap_nbytes)

    def _place(self, lifetimes: Lifetimes, problem: SwapProblem, plan: SwapPlan) -> Placed:
        return plan_places(lifetimes, gone_in_time(problem, plan), self.allocations, self.iteration)

    def _refusal(self, live_nbytes: int) -> BudgetInfeasibleError:
        """So much is live at one moment whatever is away; what is kept free beside it comes on top."""
        needed_nbytes = self.record().budget_nbytes(live_nbytes)
        beside_nbytes = needed_nbytes - live_nbytes
        return BudgetInfeasibleError(
            f"an iteration has {format_size(live_nbytes)} in memory at one moment that are all in use, and takes "
            f"{format_size(beside_nbytes)} beside them; the budget is {format_size(self._budget.nbytes)}: set one of "
            f"{format_size(needed_nbytes)}, or take smaller batches",
            needed_nbytes=needed_nbytes,
        )

    def record(self) -> SwapRecord:
        """What is known, for any budget."""
        problem = self.iteration.problem(*self._links, max(self.iteration.peak_nbytes))
        overhead_nbytes = self.overhead_nbytes if self._beside_nbytes is not None else None
        return SwapRecord(problem, self.iteration.names(), overhead_nbytes, self.iteration.kinds)

    def follow(self, plan: SwapPlan, mover: Mover, stats: SwapStats) -> Swapper:
        """What executes a plan from the begin of the next iteration on.

        Raises:
            StorageError: the disk has no room for what leaves.
        """
        iteration, pool, lifetimes = self.iteration, self._pool, self.lifetimes
        if pool is None or lifetimes is None or self._placed is None:
            places = own_places(plan, iteration)
            return Swapper(
                iteration.events, plan, mover, places, stats, movables=self.movables, recipes=iteration.recipes
            )
        places = pool_places(pool, self._placed.places, plan)
        pool.retire()
        first = [*lifetimes.first_allocations, len(lifetimes.nbytes)]  # after the last segment nothing is planned
        return Swapper(
            iteration.events,
            plan,
            mover,
            places,
            stats,
            movables=self.movables,
            recipes=iteration.recipes,
            seek=lambda segment: pool.seek(first[segment]),
        )

    def relearn(self, seconds: Floats, mover: Mover) -> None:
        """Segments took so long while a plan was followed, and transfers what the mover says."""
        known = zip(seconds, self.iteration.seconds, strict=True)
        measured = tuple(float(new) if np.isfinite(new) else old for new, old in known)
        self.iteration = replace(self.iteration, seconds=measured)
        out, back = self._links
        self._links = mover.out.link(out), mover.back.link(back)

    def correct(self, taken_nbytes: int, plan: SwapPlan) -> None:
        """An iteration that followed a plan was measured to take so much."""
        total_nbytes = self._placed.total_nbytes if self._placed is not None else plan.peak_nbytes
        self._beside_nbytes = max(taken_nbytes - total_nbytes, 0) + self._budget.nbytes // _MARGIN
        self._gap_nbytes = max(min(taken_nbytes, total_nbytes) - plan.peak_nbytes, 0)

    def exclude(self, storages: Collection[int]) -> None:
        """These are not away, whatever a plan says."""
        kept = [
            tuple(absence for absence in absences if absence.storage not in storages)
            for absences in (self.iteration.absences, self.iteration.recomputable)
        ]
        self.iteration = replace(self.iteration, absences=kept[0], recomputable=kept[1])
