"""Whether what was measured of iterations that followed a plan asks for another plan."""

from __future__ import annotations

import logging

from penstock.budget import format_size
from penstock.planning.swap_plan import SwapPlan
from penstock.training.meter import Meter
from penstock.training.mover import Mover
from penstock.training.planner import Planner
from penstock.training.swapper import Swapper

logger = logging.getLogger("penstock")

CORRECTIONS = 3
"""So often a plan is made anew because iterations took more than the budget."""

KERNELS = 100
"""One part in so many of the budget is the kernel's, for page tables and the like: a group's account has them, and the
process's own has not."""

LATE = 0.01
"""So much of an iteration may be waited for beyond what was predicted."""

_WARM = 2
"""Iterations of a plan before waits count: the first has page faults, and the reads of what was written before it."""


class Corrector:
    """Looks at each iteration until nothing more is to be corrected.

    Args:
        budget_nbytes: which iterations are to keep.
        meter: of what they take.

    Attributes:
        is_done: whether it looks no more.
    """

    def __init__(self, budget_nbytes: int, meter: Meter) -> None:
        self._budget_nbytes, self._meter = budget_nbytes, meter
        self._corrections = self._looked = 0
        self._were_futile: frozenset[int] = frozenset()
        self._was_beyond = self._has_relearnt = self.is_done = False

    def looks(self, planner: Planner, plan: SwapPlan, swapper: Swapper, mover: Mover) -> bool:
        """After an iteration: whether there is more to know, and so another plan to make. It is told the planner."""
        followed = len(swapper.clock.waits)
        if followed in (0, self._looked):  # an iteration that departed says nothing of the plan
            return False
        self._looked = followed
        # Once may have been the frames of an error; but at first it costs memory that was planned for.
        futile = swapper.futile if followed == 1 else swapper.futile & self._were_futile
        self._were_futile = swapper.futile
        if futile:
            self._looked = 0
            planner.exclude(futile)
            return True
        taken_nbytes = self._meter.taken_nbytes() if followed > 1 else 0  # the first still has what was before
        goal_nbytes = self._budget_nbytes - self._budget_nbytes // KERNELS
        was_beyond, self._was_beyond = self._was_beyond, taken_nbytes > goal_nbytes
        if self._was_beyond:
            if not was_beyond:  # once may have been an evaluation, or a checkpoint
                return False
            return self._correct(planner, taken_nbytes, plan)
        if followed <= _WARM:
            return False
        waited = min(swapper.clock.waits[1:]) - (plan.predicted_seconds - plan.compute_seconds)
        if waited > LATE * plan.compute_seconds and not self._has_relearnt:
            self._has_relearnt, self._looked = True, 0
            planner.relearn(swapper.clock.seconds, mover)
            return True
        self.is_done = True
        return False

    def _correct(self, planner: Planner, taken_nbytes: int, plan: SwapPlan) -> bool:
        self._was_beyond, self._looked = False, 0
        if self._corrections == CORRECTIONS:
            if taken_nbytes > self._budget_nbytes:
                logger.warning(
                    "an iteration takes %s after %d corrections of its plan, and the budget is %s: training goes on so",
                    format_size(taken_nbytes),
                    CORRECTIONS,
                    format_size(self._budget_nbytes),
                )
            self.is_done = True
            return False
        self._corrections += 1
        planner.correct(taken_nbytes, plan)
        return True
