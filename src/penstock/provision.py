"""What keeps a streamed module provided: the plan in force, and room in it for each call before the call runs."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from penstock.admission import Admission, assumed_trace, with_shares
from penstock.budget import Budget
from penstock.checkpoint import Checkpoint
from penstock.deployment import Deployment
from penstock.dryrun import dry_result, dry_trace, prepare
from penstock.errors import BudgetInfeasibleError, StreamStateError
from penstock.footprint import Footprint, retain_little, return_free_memory
from penstock.planmaking import Need, Planner, caution
from penstock.planning import Plan, Problem
from penstock.planning.costs import lost_seconds
from penstock.profile import MEASURABLE_NBYTES, margin_nbytes
from penstock.runtime.binding import BoundWeight, to_realign
from penstock.signature import Signature
from penstock.terms import Terms
from penstock.trace import Trace
from penstock.tracestore import TraceStore

logger = logging.getLogger("penstock")

HEADROOM = 1.25
"""Reserve this much more than a larger call needs, so that a growing cache does not ask for a plan each token."""

GUARDED_OF_OVERHEAD = 6
"""Within a pass, free memory goes back where less than this part of what was measured is left: a layer may need it."""

WASTE = 20
"""A measured pass that leaves more than this part of the budget unused is worth a new plan."""

_TIMED_PASSES = 3
"""Passes that are timed; the shortest counts: other work disturbs it least. See `listening.Clock`."""


class Provision:
    """The planning side of one streamed module.

    Attributes:
        deployment: follows the plan in force.
        admitted: the kind of call that the plan is known to have room for.
        learning: kinds of call whose times and memory are still to be measured, and in how many passes.
    """

    def __init__(
        self,
        module: nn.Module,
        checkpoint: Checkpoint,
        weights: list[BoundWeight],
        *,
        terms: Terms,
        fixed_nbytes: int,
        footprint: Footprint,
        owned_folder: Path | None,
    ) -> None:
        self.checkpoint, self.weights = checkpoint, weights
        self.terms, self.fixed_nbytes = terms, fixed_nbytes
        self.footprint = footprint
        self.admission = Admission(TraceStore(module, weights, checkpoint.fingerprint))
        self._planner = Planner(weights, checkpoint, terms.strategy)
        self.deployment = Deployment(module, checkpoint, weights, owned_folder)
        footprint.arena_nbytes = self.deployment.arena_nbytes
        self._is_growing = self.is_outgrown = False
        self._shares: tuple[float, ...] = ()  # of activations, by call, which the ebbs of the plan in force go by
        self.admitted: Signature | None = None
        self.learning: dict[Signature, int] = {}
        self._met: set[Signature] = set()  # of these kinds, those of which a pass has ended in this process

    def set_budget(self, budget: Budget) -> None:
        """Plan again for another byte cap.

        Raises:
            BudgetInfeasibleError: no plan fits; the old one stays in force.
        """
        before, self.terms = self.terms, replace(self.terms, budget=budget)
        try:
            if self.admission.primary is not None:
                self._replan(max(self._room_nbytes(), 0))
        except BaseException:
            self.terms = before
            raise
        retain_little(budget.nbytes)

    @property
    def room_nbytes(self) -> int:
        """What a pass may take besides the arena, the margin not touched; all that there is where nothing is known."""
        installation = self.deployment.installation
        if installation is None or self.terms.budget.nbytes < MEASURABLE_NBYTES:
            return sys.maxsize
        plan = installation.plan
        return plan.prediction.peak_nbytes - plan.arena_nbytes - plan.staging_nbytes - margin_nbytes(plan.budget_nbytes)

    def guard(self) -> None:
        """Within a pass: see to it that the budget is kept where the allocator keeps more than it was measured to."""
        self.footprint.guard(self._most_nbytes)

    def _most_nbytes(self) -> int:
        """What the process may hold between two layers, arena included."""
        budget_nbytes = self.terms.budget.nbytes
        if budget_nbytes < MEASURABLE_NBYTES:
            return sys.maxsize
        margin = margin_nbytes(budget_nbytes)
        return budget_nbytes - margin - max(margin, self.admission.overhead_nbytes // GUARDED_OF_OVERHEAD)

    def is_first(self, signature: Signature) -> bool:
        """Whether kernels may still make what they keep: no pass of this plan, or of a new kind of call, has ended."""
        is_new = signature in self.learning and signature not in self._met
        return is_new or signature != self.admitted or not self.deployment.has_passed

    def settle(self, signature: Signature) -> None:
        """A pass has ended."""
        self.deployment.settle()
        if signature in self.learning:
            self._met.add(signature)

    def begin_from_store(self) -> None:
        """Plan for the kind of call that an earlier process recorded, and begin to load, if there was one."""
        trace = self.admission.use_latest()
        if trace is not None:
            # A plan for another call than the coming one is worth nothing; that call is planned for in its turn.
            with contextlib.suppress(BudgetInfeasibleError):
                self._replan(trace.activations_nbytes)

    def learn(self, signature: Signature, trace: Trace) -> None:
        """Keep what a measured pass told; plan again before the next one if too little or too much was kept free."""
        plan = self.deployment.plan
        self.learning[signature] -= 1
        if not self.learning[signature]:
            del self.learning[signature]
        grown_nbytes = self.footprint.peak_growth_nbytes()
        self.footprint.is_measuring = bool(self.learning)
        self.admission.add(signature, trace)
        if grown_nbytes is not None and self.terms.budget.nbytes >= MEASURABLE_NBYTES:
            overhead_nbytes = grown_nbytes - plan.reserve.io_nbytes + plan.ebbed_nbytes
            self.admission.note_overhead(signature, overhead_nbytes, is_ebbing=bool(plan.ebbs))
            spare_nbytes = plan.reserve.activations_nbytes + plan.reserve.bookkeeping_nbytes - overhead_nbytes
            is_learnt = signature not in self.learning
            caution_nbytes = self._caution_nbytes()
            is_wasteful = spare_nbytes - caution_nbytes > self.terms.budget.nbytes // WASTE
            if spare_nbytes < 0 or (is_learnt and (is_wasteful or spare_nbytes < caution_nbytes // 2)):
                self.admitted, self.is_outgrown = None, True

    def lost_seconds(self) -> float:
        """What computing loses in each pass to the loads and slices of the plan in force."""
        installation = self.deployment.in_force()
        return lost_seconds(installation.problem, installation.plan)

    def learn_anew(self, signature: Signature, trace: Trace) -> None:
        """Keep the trace of a pass that nothing was known of; plan for it before the next one."""
        self.admission.primary = None  # what was assumed
        self.admission.add(signature, trace)
        self.is_outgrown = True

    def admit(self, signature: Signature, args: Any, kwargs: Any) -> None:
        """See to it that the plan has room for this call, or refuse it.

        Raises:
            BudgetInfeasibleError: no plan within the budget has.
        """
        admission = self.admission
        needed = admission.activations_nbytes(signature)
        if needed is None or self._room_nbytes() < needed:  # nothing known covers it: is it known itself?
            trace = admission.trace(signature) or self.dry(args, kwargs)
            if trace is not None:
                admission.add(signature, trace)
                needed = admission.activations_nbytes(signature)
        if needed is None:
            self.plan_blindly()
            return
        if self._room_nbytes() < needed or not self._to_realign() <= self.deployment.realigned:
            self._make_room(needed)
        elif self.is_outgrown:
            self._make_fit(needed)
        elif self.deployment.plan.ebbs and self.admission.activation_shares() != self._shares:
            self._make_room(needed)  # this kind of call has its activations at other times
        self.admitted = signature
        if admission.take_to_measure(signature, is_ebbing=bool(self.deployment.plan.ebbs)):
            self.learning.setdefault(signature, _TIMED_PASSES)
        if not self.learning:
            self.footprint.is_measuring = False
        elif not self.footprint.is_measuring:
            self.footprint.measure_again()

    def _to_realign(self) -> frozenset[int]:
        """Weights whose last bits of a product, or use at all, depend on an aligned address."""
        return to_realign(self.weights, self.admission.single_row)

    def _room_nbytes(self) -> int:
        installation = self.deployment.installation
        return installation.plan.reserve.activations_nbytes if installation is not None else -1

    def _make_room(self, needed_nbytes: int) -> None:
        present = self._room_nbytes()
        if 0 <= present < needed_nbytes and self._is_growing:
            with contextlib.suppress(BudgetInfeasibleError):  # without headroom, then
                self._replan(int(needed_nbytes * HEADROOM))
                return
        self._is_growing = present >= 0
        self._replan(max(needed_nbytes, present))

    def _make_fit(self, needed_nbytes: int) -> None:
        """Plan with what was measured. Calls that ran are not refused for it now, but no process after this begins."""
        try:
            self._make_room(needed_nbytes)
        except BudgetInfeasibleError as error:
            self.is_outgrown = False
            logger.warning(
                "%s was measured to need a budget of %d bytes and runs beyond its %d: set a larger one",
                type(self.deployment.module).__name__,
                error.needed_nbytes,
                self.terms.budget.nbytes,
            )

    def plan_blindly(self) -> None:
        """Nothing tells what a call needs: half of the budget is for its activations, or what layers leave."""
        if self.deployment.installation is not None and not self.is_outgrown:
            return
        self.admission.primary = assumed_trace(self.deployment.module, self.weights)
        half_nbytes = self.terms.budget.nbytes // 2
        try:
            self._replan(half_nbytes)
        except BudgetInfeasibleError as error:
            self._replan(max(half_nbytes - (error.needed_nbytes - self.terms.budget.nbytes), 0))

    def dry(self, args: Any, kwargs: Any) -> Trace | None:
        """Trace such a call without computing it; None where it cannot be."""
        with self._plain() as (module, forward):
            return dry_trace(module, forward, self.weights, args, kwargs)

    def dry_result(self, args: Any, kwargs: Any) -> Any:
        """What such a call would return, in fake tensors; None where that cannot be told."""
        with self._plain() as (module, forward):
            return dry_result(module, forward, self.weights, args, kwargs)

    @contextlib.contextmanager
    def _plain(self) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        """The module, and its own forward, without what streaming hangs on its layers."""
        with self.footprint.uncounted():
            prepare()
        with self.deployment.unfollowed():
            try:
                yield self.deployment.module, self.deployment.attachment.root_forward
            finally:
                return_free_memory()

    def _replan(self, activations_nbytes: int) -> None:
        primary = self.admission.primary
        if primary is None:
            raise StreamStateError("no pass was recorded to plan for: call the module first")
        caution_nbytes = self._caution_nbytes()
        try:
            self._replan_with(primary, activations_nbytes, caution_nbytes)
            return
        except BudgetInfeasibleError as error:
            if not caution_nbytes:
                raise
            lacking_nbytes = error.needed_nbytes - self.terms.budget.nbytes
        self._replan_with(primary, activations_nbytes, max(caution_nbytes - lacking_nbytes, 0))

    def _caution_nbytes(self) -> int:
        return caution(self.terms.budget.nbytes, self.admission.overhead_nbytes, self.footprint.growth_nbytes())

    def _replan_with(self, primary: Trace, activations_nbytes: int, caution_nbytes: int) -> None:
        problem, plan = self._plan_with(primary, activations_nbytes, caution_nbytes)
        if plan.ebbs:  # activations have room at their own times only, so those of all kinds of calls count
            self._shares = self.admission.activation_shares()
            problem, plan = self._plan_with(with_shares(primary, self._shares), activations_nbytes, caution_nbytes)
        return_free_memory()  # planning has left some in between
        self.is_outgrown = False
        present, realigned = self.deployment.installation, self._to_realign()
        is_same = present is not None and present.plan.problem_fingerprint == plan.problem_fingerprint
        if is_same and realigned <= self.deployment.realigned:
            return
        self.admitted = None
        self.deployment.install(problem, plan, self.terms.device, realigned)

    def _plan_with(self, trace: Trace, activations_nbytes: int, caution_nbytes: int) -> tuple[Problem, Plan]:
        return self._planner.plan(
            trace,
            self.terms,
            Need(
                activations_nbytes,
                self.admission.overhead_nbytes,
                self.admission.ebbing_nbytes,
                self.fixed_nbytes,
                caution_nbytes,
            ),
            moved=self._to_realign(),
        )
