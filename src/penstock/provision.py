"""What keeps a streamed module provided: the plan in force, and room in it for each call before the call runs."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.admission import Admission, assumed_trace
from penstock.budget import Budget
from penstock.checkpoint import Checkpoint
from penstock.dryrun import dry_result, dry_trace, prepare
from penstock.errors import BudgetInfeasibleError, StreamStateError
from penstock.footprint import Footprint, return_free_memory
from penstock.machine import storage_profile
from penstock.planning import Plan, Problem
from penstock.profile import MEASURABLE_NBYTES, make_problem
from penstock.runtime.attachment import Attachment
from penstock.runtime.binding import BoundWeight, FileViews
from penstock.runtime.devices.base import Device
from penstock.runtime.executor import Executor
from penstock.runtime.installation import Installation
from penstock.runtime.pipeline import Pipeline, PipelineStats
from penstock.runtime.storage import FileStorage
from penstock.signature import Signature
from penstock.trace import Trace
from penstock.tracestore import TraceStore, kept_plan

logger = logging.getLogger("penstock")

HEADROOM = 1.25
"""Reserve this much more than a larger call needs, so that a growing cache does not ask for a plan each token."""

CAUTION = 3
"""Before a pass was measured, this part of the budget is kept free for what only a measurement tells."""

WASTE = 20
"""A measured pass that leaves more than this part of the budget unused is worth a new plan."""

_TIMED_PASSES = 3
"""Passes that are timed; of each layer the shortest time counts, which other work on the machine disturbs least."""


class Provision:
    """The planning side of one streamed module.

    Attributes:
        installation: the plan in force with its memory, if there is one.
        admitted: the kind of call that the plan is known to have room for.
        learning: kinds of call whose times and memory are still to be measured, and in how many passes.
        earlier: what installations that are gone did.
    """

    def __init__(
        self,
        module: nn.Module,
        checkpoint: Checkpoint,
        weights: list[BoundWeight],
        *,
        budget: Budget,
        device: Device,
        strategy: str,
        fixed_nbytes: int,
        footprint: Footprint,
        owned_folder: Path | None,
    ) -> None:
        self._module = weakref.ref(module)
        self._modules = {name: weakref.ref(child) for name, child in module.named_modules()}
        self.checkpoint, self.weights = checkpoint, weights
        self._budget, self.device, self.strategy = budget, device, strategy
        self.fixed_nbytes, self.owned_folder = fixed_nbytes, owned_folder
        self.footprint = footprint
        self.admission = Admission(TraceStore(module, weights, checkpoint.fingerprint))
        self._profile = storage_profile(checkpoint.files[0].path)
        self.storage = FileStorage(checkpoint.files)
        self.installation: Installation | None = None
        self._is_settled = self._is_growing = False
        self.is_outgrown = False
        self.admitted: Signature | None = None
        self.learning: dict[Signature, int] = {}
        self._realigned: frozenset[int] = frozenset()
        self.earlier = PipelineStats()
        self.peak_nbytes = 0
        self.executor = Executor(weights, FileViews(checkpoint))
        self.attachment = Attachment(module)
        self._process = os.getpid()
        self._closer = _Closer(self.storage, owned_folder)
        self._finalizer = weakref.finalize(module, self._closer)

    @property
    def module(self) -> nn.Module:
        """The streamed module."""
        module = self._module()
        if module is None:
            raise StreamStateError("the streamed module is gone")
        return module

    @property
    def budget(self) -> Budget:
        """The byte cap. Setting it plans again; if that cannot be, the old one stays in force."""
        return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        before, self._budget = self._budget, budget
        try:
            if self.admission.primary is not None:
                self._replan(max(self._room_nbytes(), 0))
        except BudgetInfeasibleError:
            self._budget = before
            raise

    @property
    def plan(self) -> Plan:
        """The plan in force.

        Raises:
            StreamStateError: there is none.
        """
        if self.installation is None:
            raise StreamStateError("nothing is planned yet: call the module once, or stream it with an `example`")
        return self.installation.plan

    def begin_from_store(self) -> None:
        """Plan for the kind of call that an earlier process recorded, and begin to load, if there was one."""
        trace = self.admission.use_latest()
        if trace is not None:
            # A plan for another call than the coming one is worth nothing; that call is planned for in its turn.
            with contextlib.suppress(BudgetInfeasibleError):
                self._replan(trace.activations_nbytes)

    def settle(self) -> None:
        """After a pass: let resident layers run free once they are loaded."""
        installation = self.installation
        if installation is not None and not self._is_settled and not self.executor.is_cold:
            self.executor.settle(installation.warm)
            self.attachment.follow(self.executor, installation.warm.sites)
            self._is_settled = True

    def stats(self) -> PipelineStats:
        """What all installations did so far."""
        total = PipelineStats()
        total += self.earlier
        if self.installation is not None:
            total += self.installation.pipeline.stats
        return total

    def close(self, *, remove_files: bool) -> None:
        """Undo everything but the weights: no thread, descriptor, hook or file is left. Weights stay unreadable."""
        self._uninstall()
        self.attachment.detach()
        self._finalizer.detach()
        self.storage.close()
        if remove_files and self.owned_folder is not None and self.is_own_process:
            shutil.rmtree(self.owned_folder, ignore_errors=True)

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that streams, not a fork of it."""
        return os.getpid() == self._process

    def learn(self, signature: Signature, trace: Trace) -> None:
        """Keep what a measured pass told; plan again before the next one if too little or too much was kept free."""
        plan = self.plan
        self.learning[signature] -= 1
        if not self.learning[signature]:
            del self.learning[signature]
        grown_nbytes = self.footprint.peak_growth_nbytes()
        self.footprint.is_measuring = bool(self.learning)
        self.admission.add(signature, trace)
        if grown_nbytes is not None and plan.budget_nbytes >= MEASURABLE_NBYTES:
            overhead_nbytes = grown_nbytes - plan.reserve.io_nbytes
            self.admission.note_overhead(signature, max(overhead_nbytes, 0))
            spare_nbytes = plan.reserve.activations_nbytes + plan.reserve.bookkeeping_nbytes - overhead_nbytes
            is_learnt = signature not in self.learning
            if spare_nbytes < 0 or (is_learnt and spare_nbytes > plan.budget_nbytes // WASTE):
                self.admitted, self.is_outgrown = None, True

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
        if self._room_nbytes() < needed or not self._to_realign() <= self._realigned:
            self._make_room(needed)
        elif self.is_outgrown:
            self._make_fit(needed)
        self.admitted = signature
        if admission.take_to_measure(signature):
            self.learning.setdefault(signature, _TIMED_PASSES)
        self.footprint.is_measuring = bool(self.learning)

    def _to_realign(self) -> frozenset[int]:
        """Weights whose last bits of a product, or use at all, depend on an aligned address."""
        moved = {index for index, weight in enumerate(self.weights) if weight.must_move}
        return frozenset(moved | {index for index in self.admission.single_row if self.weights[index].is_aligned})

    def _room_nbytes(self) -> int:
        return self.installation.plan.reserve.activations_nbytes if self.installation is not None else -1

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
                type(self.module).__name__,
                error.needed_nbytes,
                self._budget.nbytes,
            )

    def plan_blindly(self) -> None:
        """Nothing tells what a call needs: half of the budget is for its activations, or what layers leave."""
        if self.installation is not None and not self.is_outgrown:
            return
        self.admission.primary = assumed_trace(self.module, self.weights)
        half_nbytes = self._budget.nbytes // 2
        try:
            self._replan(half_nbytes)
        except BudgetInfeasibleError as error:
            self._replan(max(half_nbytes - (error.needed_nbytes - self._budget.nbytes), 0))

    def dry(self, args: Any, kwargs: Any) -> Trace | None:
        """Trace such a call without computing it; None where it cannot be."""
        with self._plain():
            return dry_trace(self.module, self.attachment.root_forward, self.weights, args, kwargs)

    def dry_result(self, args: Any, kwargs: Any) -> Any:
        """What such a call would return, in fake tensors; None where that cannot be told."""
        with self._plain():
            return dry_result(self.module, self.attachment.root_forward, self.weights, args, kwargs)

    @contextlib.contextmanager
    def _plain(self) -> Iterator[None]:
        """The module without what streaming hangs on its layers."""
        with self.footprint.uncounted():
            prepare()
        self.attachment.follow(None, ())
        try:
            yield
        finally:
            return_free_memory()
            if self.installation is not None:
                schedule = self.installation.warm if self._is_settled else self.installation.cold
                self.attachment.follow(self.executor, schedule.sites)

    def _replan(self, activations_nbytes: int) -> None:
        primary = self.admission.primary
        if primary is None:
            raise StreamStateError("no pass was recorded to plan for: call the module first")
        if not self.admission.overhead_nbytes and self._budget.nbytes >= MEASURABLE_NBYTES:
            # Nothing was measured yet: keep more free than most models take, if the budget allows it.
            with contextlib.suppress(BudgetInfeasibleError):
                self._replan_with(primary, activations_nbytes, self._budget.nbytes // CAUTION)
                return
        self._replan_with(primary, activations_nbytes, 0)

    def _replan_with(self, primary: Trace, activations_nbytes: int, caution_nbytes: int) -> None:
        problem = make_problem(
            primary,
            self.weights,
            self._profile,
            budget_nbytes=self._budget.nbytes,
            activations_nbytes=activations_nbytes,
            fixed_nbytes=self.fixed_nbytes + caution_nbytes,
            overhead_nbytes=self.admission.overhead_nbytes if self._budget.nbytes >= MEASURABLE_NBYTES else 0,
        )
        plan = kept_plan(problem, self.strategy)
        self.is_outgrown = False
        present = self.installation.plan if self.installation is not None else None
        is_same = present is not None and present.problem_fingerprint == plan.problem_fingerprint
        if is_same and self._to_realign() <= self._realigned:
            return
        self._install(problem, plan)

    def _install(self, problem: Problem, plan: Plan) -> None:
        self._uninstall()
        with torch.inference_mode(False):  # a plan made inside a pass outlives the mode that the pass runs in
            self._take(problem, plan)

    def _take(self, problem: Problem, plan: Plan) -> None:
        self._realigned = self._to_realign()
        installation = Installation(
            plan,
            problem,
            weights=self.weights,
            modules={name: module for name, ref in self._modules.items() if (module := ref()) is not None},
            device=self.device,
            storage=FileStorage(self.checkpoint.files, direct=self.storage.direct),
            realign=self._realigned,
        )
        self.installation, self._closer.pipeline = installation, installation.pipeline
        self.footprint.arena_nbytes = installation.arena_nbytes
        self._is_settled = False
        self.executor.install(installation.cold, installation.pipeline)
        self.attachment.follow(self.executor, installation.cold.sites)
        self.peak_nbytes = max(self.peak_nbytes, plan.prediction.peak_nbytes)

    def _uninstall(self) -> None:
        """Give the present plan's memory and threads back."""
        self.attachment.follow(None, ())
        self.executor.suspend()
        if self.installation is not None:
            self.earlier += self.installation.pipeline.stats
            self.installation.close()
        self.footprint.arena_nbytes = lambda: 0
        self.installation = self._closer.pipeline = self.admitted = None  # or its arena would outlive it
        self.executor.uninstall()


class _Closer:
    """Ends what would outlive a module that is dropped without `restore`."""

    def __init__(self, storage: FileStorage, folder: Path | None) -> None:
        self._storage, self._folder = storage, folder
        self.pipeline: Pipeline | None = None  # not the schedule, which knows modules and would keep them
        self._process = os.getpid()

    def __call__(self) -> None:
        if os.getpid() != self._process:
            return  # a forked child leaves its parent's files alone
        if self.pipeline is not None:
            self.pipeline.close()
        self._storage.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
