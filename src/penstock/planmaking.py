"""From a trace and what is known of the process's memory to a problem, and the plan for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from penstock.admission import with_shares
from penstock.budget import format_size
from penstock.capacity import capacity_for
from penstock.checkpoint import Checkpoint
from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.machine import storage_profile
from penstock.planning import Plan, Problem
from penstock.profile import MEASURABLE_NBYTES, make_problem
from penstock.runtime.binding import BoundWeight
from penstock.terms import Terms
from penstock.trace import Trace
from penstock.tracestore import kept_plan

CAUTION = 4
"""Before a pass was measured, this part of the budget is kept free for what only a measurement tells, besides as much
as the process has come to hold already: Python's objects, mostly, but nobody knows what else."""

CAUTION_OF_OVERHEAD = 6
"""Afterwards, this part of what was measured: the allocator's luck differs so much from process to process (28 to 33
MiB of a ResNet-152)."""

LEFT_SHARE = 2
"""Until a plan that ebbs was measured, one part in so many of what activations leave is taken to stay in the heap."""


def caution(budget_nbytes: int, overhead_nbytes: int, held_nbytes: int) -> int:
    """Bytes that had better be free besides what is known to be needed, if the budget allows it.

    Args:
        budget_nbytes: all that there is.
        overhead_nbytes: what was measured; 0 where nothing was.
        held_nbytes: what the process has come to hold already.
    """
    if budget_nbytes < MEASURABLE_NBYTES:
        return 0
    return overhead_nbytes // CAUTION_OF_OVERHEAD if overhead_nbytes else budget_nbytes // CAUTION + held_nbytes


@dataclass(frozen=True, slots=True)
class Need:
    """What a pass needs of the budget besides its weights.

    Attributes:
        activations_nbytes: its own tensors.
        overhead_nbytes: what it was measured to take beyond arena and I/O buffers; 0 where it was not.
        ebbing_nbytes: the same with a plan that ebbs, which counts only for such a one; 0 where it was not.
        fixed_nbytes: buffers and parameters that do not stream.
        caution_nbytes: what had better be free besides.
    """

    activations_nbytes: int
    overhead_nbytes: int
    ebbing_nbytes: int
    fixed_nbytes: int
    caution_nbytes: int


class Planner:
    """Makes the plans of one streamed module, with this machine's storage."""

    def __init__(self, weights: Sequence[BoundWeight], checkpoint: Checkpoint, strategy: str) -> None:
        path = checkpoint.files[0].path
        self._weights = weights
        self._profile = storage_profile(path)
        self._capacity = capacity_for(strategy, path)

    def plan(self, trace: Trace, terms: Terms, need: Need, *, moved: Collection[int]) -> tuple[Problem, Plan]:
        """The best plan within what was measured.

        The allocator holds on to some of what activations leave, which a plan that ebbs has to have room for. The
        other way is not to ebb.

        Raises:
            BudgetInfeasibleError: there is none.
            PlanError: none is what the options ask for.
        """
        first = self._solve(trace, terms, need, moved)
        ebbing_nbytes = need.ebbing_nbytes
        if need.overhead_nbytes and not ebbing_nbytes:
            ebbing_nbytes = need.overhead_nbytes + need.activations_nbytes // LEFT_SHARE
        if not first[1].ebbs or ebbing_nbytes <= need.overhead_nbytes:
            return first
        level = with_shares(trace, [1.0] * len(trace.calls))
        found: list[tuple[Problem, Plan]] = []
        refused: list[BudgetInfeasibleError | PlanError] = []
        for tried, overhead_nbytes in ((level, need.overhead_nbytes), (trace, ebbing_nbytes)):
            try:
                found.append(self._solve(tried, terms, replace(need, overhead_nbytes=overhead_nbytes), moved))
            except (BudgetInfeasibleError, PlanError) as error:
                refused.append(error)
        if not found and not need.ebbing_nbytes:
            return first  # a guess refuses nothing
        if not found:
            raise min(refused, key=lambda error: getattr(error, "needed_nbytes", math.inf))
        saves_memory = terms.options.least_memory or terms.options.max_overhead is not None
        return min(found, key=lambda pair: pair[1].budget_nbytes if saves_memory else pair[1].prediction.warm_seconds)

    def _solve(self, trace: Trace, terms: Terms, need: Need, moved: Collection[int]) -> tuple[Problem, Plan]:
        problem = make_problem(
            trace,
            self._weights,
            self._profile,
            budget_nbytes=terms.budget.nbytes,
            activations_nbytes=need.activations_nbytes,
            fixed_nbytes=need.fixed_nbytes,
            overhead_nbytes=need.overhead_nbytes,
            moved=moved,
            caution_nbytes=need.caution_nbytes,
            capacity=self._capacity,
        )
        return problem, kept_plan(problem, terms.strategy, terms.options)


def refusing_beyond(plan: Plan, budget_nbytes: int) -> Callable[[int], None]:
    """What raises once a pass's own tensors take more bytes than `plan` leaves of the budget for them."""
    reserve = plan.reserve
    taken_nbytes = plan.arena_nbytes + plan.staging_nbytes + reserve.io_nbytes + reserve.bookkeeping_nbytes
    room_nbytes = budget_nbytes - taken_nbytes

    def check(live_nbytes: int) -> None:
        if live_nbytes > room_nbytes:
            raise BudgetInfeasibleError(
                f"this call's activations reach {format_size(live_nbytes)}, and the budget of "
                f"{format_size(budget_nbytes)} leaves {format_size(room_nbytes)} for them: "
                "call it with smaller inputs or set a larger budget",
                needed_nbytes=budget_nbytes + live_nbytes - room_nbytes,
            )

    return check
