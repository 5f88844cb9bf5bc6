"""A streamed module's handle: its plan, its budget, what it did, and the machinery behind it."""

from __future__ import annotations

import contextlib
import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from penstock.admission import Admission, assumed_trace
from penstock.budget import Budget, format_size
from penstock.checkpoint import Checkpoint
from penstock.dryrun import dry_trace
from penstock.errors import BudgetInfeasibleError, StreamStateError
from penstock.footprint import Footprint
from penstock.machine import storage_profile
from penstock.planning import Plan, Problem
from penstock.profile import make_problem
from penstock.recorder import Clock, Recorder, heard, listening
from penstock.runtime.attachment import Attachment
from penstock.runtime.binding import BoundWeight, FileViews
from penstock.runtime.devices.base import Device
from penstock.runtime.executor import Executor
from penstock.runtime.installation import Installation
from penstock.runtime.pipeline import PipelineStats
from penstock.runtime.reading import read_weight
from penstock.runtime.rows import RowTable
from penstock.runtime.storage import FileStorage
from penstock.signature import Signature
from penstock.trace import Trace
from penstock.tracestore import TraceStore, kept_plan

MEASURABLE_NBYTES = 8 << 20
"""Below such a budget the kernel's counters and Python's own garbage are coarser than what they would measure."""

HEADROOM = 1.25
"""Reserve this much more than a larger call needs, so that a growing cache does not ask for a plan each token."""


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What a stream did since it was made.

    Attributes:
        passes: passes run.
        bytes_read: from storage, rows of tables included.
        stall_seconds: for which layers waited for their weights.
        demand_loads: loads that the plan did not foresee, and weights that had to be mapped.
        peak_nbytes: most bytes that the budget was used for: arena, I/O buffers, bookkeeping, activations as traced.
        pass_stall_seconds: the part of `stall_seconds` in the last pass.
    """

    passes: int
    bytes_read: int
    stall_seconds: float
    demand_loads: int
    peak_nbytes: int
    pass_stall_seconds: float


class Stream:
    """What `penstock.inspect` returns."""

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
        owned_folder: Path | None = None,
    ) -> None:
        self._module = weakref.ref(module)
        self._modules = {name: weakref.ref(child) for name, child in module.named_modules()}
        self.checkpoint, self.weights = checkpoint, weights
        self._budget, self._device, self._strategy = budget, device, strategy
        self._fixed_nbytes, self.owned_folder = fixed_nbytes, owned_folder
        self._footprint = footprint
        self._admission = Admission(TraceStore(module, weights, checkpoint.fingerprint))
        self._profile = storage_profile(checkpoint.files[0].path)
        self._storage = FileStorage(checkpoint.files)
        self._installation: Installation | None = None
        self._is_settled = self._is_outgrown = self._is_growing = False
        self._admitted: Signature | None = None
        self._learning: dict[Signature, Trace] = {}
        self._realigned: frozenset[int] = frozenset()
        self._earlier = PipelineStats()  # of installations that are gone
        self._row_nbytes = self._peak_nbytes = 0
        self._pass_stall = 0.0
        self.executor = Executor(weights, FileViews(checkpoint))
        self.attachment = Attachment(module)
        self._finalizer = weakref.finalize(module, _Closer(self._storage, owned_folder))

    # -- what people see --

    @property
    def plan(self) -> Plan:
        """The plan in force.

        Raises:
            StreamStateError: nothing is planned before the first call, where no `example` was given.
        """
        if self._installation is None:
            raise StreamStateError("nothing is planned yet: call the module once, or stream it with an `example`")
        return self._installation.plan

    @property
    def budget(self) -> Budget:
        """The byte cap. Setting it, while no pass runs, plans again."""
        return self._budget

    @budget.setter
    def budget(self, value: int | str | Budget) -> None:
        budget = Budget(value)
        with self.executor.exclusively():
            before, self._budget = self._budget, budget
            try:
                if self._admission.primary is not None:
                    self._replan(max(self._room_nbytes(), 0))
            except BudgetInfeasibleError:
                self._budget = before
                raise

    @property
    def stats(self) -> StreamStats:
        """Counters so far."""
        total = PipelineStats()
        total += self._earlier
        if self._installation is not None:
            total += self._installation.pipeline.stats
        return StreamStats(
            passes=self.executor.passes,
            bytes_read=total.bytes_read + self._row_nbytes,
            stall_seconds=total.stall_seconds,
            demand_loads=total.demand_loads + self.executor.mapped_reads,
            peak_nbytes=self._peak_nbytes,
            pass_stall_seconds=self._pass_stall,
        )

    def explain(self) -> str:
        """The plan in words, and what was measured beside what was predicted."""
        stats = self.stats
        lines = [self.plan.explain()]
        if stats.passes:
            lines.append(
                f"so far: {stats.passes} passes, {format_size(stats.bytes_read)} read, "
                f"{stats.stall_seconds:.3f} s stalled ({stats.pass_stall_seconds:.3f} s in the last pass), "
                f"{stats.demand_loads} loads on demand"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        module = self._module()
        name = type(module).__name__ if module is not None else "a module that is gone"
        return f"<penstock.Stream of {name} within {format_size(self._budget.nbytes)}>"

    # -- setting up --

    def attach(self) -> None:
        """Take the module over: every weight unreadable, every call through the executor."""
        module = self.module
        for weight in self.weights:
            weight.adopt()
        attachment, executor = self.attachment, self.executor
        attachment.wrap_pass(self._run)
        attachment.guard(self.weights, executor.map_absent)
        attachment.refuse(self.weights)
        attachment.materialise_state(self.weights, lambda weight: read_weight(self._storage, weight.source))
        attachment.show_device(self._device.torch_device)
        for weight in self.weights:
            for path in weight.row_paths:
                table = RowTable(self._storage, weight.source)
                owner = module.get_submodule(path)
                attachment.wrap_rows(owner, weight.parameter, table, executor, self._count_rows)
        module.__dict__["_penstock_stream"] = self

    def prepare(self, args: Any, kwargs: Any) -> None:
        """Plan for calls like this one now, rather than at the first of them."""
        self._admit(Signature.of(args, kwargs), args, kwargs)
        self._footprint.leave()

    def prepare_from_store(self) -> None:
        """Plan for the kind of call that an earlier process recorded, and begin to load, if there was one."""
        trace = self._admission.use_latest()
        if trace is not None:
            # A plan for another call than the coming one is worth nothing; that call is planned for in its turn.
            with contextlib.suppress(BudgetInfeasibleError):
                self._replan(trace.activations_nbytes)
        self._footprint.leave()

    @property
    def module(self) -> nn.Module:
        """The streamed module."""
        module = self._module()
        if module is None:
            raise StreamStateError("the streamed module is gone")
        return module

    def close(self, *, remove_files: bool = True) -> None:
        """Undo everything but the weights: no thread, descriptor, hook or file is left. Weights stay unreadable."""
        with self.executor.exclusively():
            self._uninstall()
            self.attachment.detach()
            self.module.__dict__.pop("_penstock_stream", None)
            self._finalizer.detach()
            self._storage.close()
            if remove_files and self.owned_folder is not None:
                shutil.rmtree(self.owned_folder, ignore_errors=True)

    # -- passes --

    def _run(self, args: Any, kwargs: Any) -> Any:
        signature = Signature.of(args, kwargs)
        stalled = self._stalled()

        def before() -> None:
            self._storage.check_unchanged()
            self._footprint.enter()
            if signature != self._admitted:
                self._admit(signature, args, kwargs)

        def compute(*args: Any, **kwargs: Any) -> Any:
            return self._compute(signature, args, kwargs)

        result = self.executor.run_pass(compute, before, args, kwargs)
        self._storage.check_unchanged()
        self._pass_stall = self._stalled() - stalled
        self._settle()
        self._footprint.leave()
        return result

    def _compute(self, signature: Signature, args: Any, kwargs: Any) -> Any:
        """The pass itself: as it is, or recorded, timed and measured where something is still to be learnt."""
        forward = self.attachment.root_layer
        if signature != self._admitted:
            return self._compute_recorded(signature, args, kwargs)
        trace = self._learning.get(signature)
        if trace is None or self.executor.is_cold:
            return forward(*args, **kwargs)
        del self._learning[signature]
        clock = Clock(frozenset(call.module for call in trace.calls), self._stalled)
        with listening(clock, self.module, clock.modules):
            result = (heard(clock, "", forward) if "" in clock.modules else forward)(*args, **kwargs)
        self._learn(signature, clock.timed(trace) or trace)
        return result

    def _learn(self, signature: Signature, trace: Trace) -> None:
        """Keep what a measured pass told; plan again if its memory or its times ask for it."""
        plan = self.plan
        grown = self._footprint.peak_growth_nbytes()
        self._footprint.is_measuring = bool(self._learning)
        self._admission.add(signature, trace)
        if grown is not None and plan.budget_nbytes >= MEASURABLE_NBYTES:
            overhead = grown - plan.arena_nbytes - plan.reserve.io_nbytes
            self._admission.note_overhead(signature, max(overhead, 0))
            if overhead > plan.reserve.activations_nbytes + plan.reserve.bookkeeping_nbytes:
                self._admitted, self._is_outgrown = None, True

    def _compute_recorded(self, signature: Signature, args: Any, kwargs: Any) -> Any:
        """The first real pass where no dry run was possible: it streams, answers, and is recorded."""
        recorder = Recorder(self.weights, stalled=self._stalled, on_peak=self._refuse_beyond(self.plan))
        if self._installation is not None:
            index = {id(weight): position for position, weight in enumerate(self.weights)}
            for load in self._installation.cold.loads:
                recorder.watch(index[id(load.weight)], load.data)
        forward = heard(recorder, "", self.attachment.root_layer)
        with listening(recorder, self.module), recorder:
            result = forward(*args, **kwargs)
        trace = recorder.trace(is_timed=True)
        self._admission.primary = None  # what was assumed
        self._admission.add(signature, trace)
        self._is_outgrown = True
        return result

    def _refuse_beyond(self, plan: Plan) -> Callable[[int], None]:
        reserve, budget = plan.reserve, self._budget.nbytes
        room = budget - plan.arena_nbytes - reserve.io_nbytes - reserve.bookkeeping_nbytes

        def check(live_nbytes: int) -> None:
            if live_nbytes > room:
                raise BudgetInfeasibleError(
                    f"this call's activations reach {format_size(live_nbytes)}, and the budget of "
                    f"{format_size(budget)} leaves {format_size(room)} for them: "
                    "call it with smaller inputs or set a larger budget",
                    needed_nbytes=budget + live_nbytes - room,
                )

        return check

    def _settle(self) -> None:
        """After a pass: let resident layers run free once they are loaded."""
        installation = self._installation
        if installation is not None and not self._is_settled and not self.executor.is_cold:
            self.executor.settle(installation.warm)
            self.attachment.follow(self.executor, installation.warm.sites)
            self._is_settled = True

    def _stalled(self) -> float:
        live = self._installation.pipeline.stats.stall_seconds if self._installation is not None else 0.0
        return self._earlier.stall_seconds + live

    def _count_rows(self, nbytes: int) -> None:
        self._row_nbytes += nbytes

    # -- planning --

    def _admit(self, signature: Signature, args: Any, kwargs: Any) -> None:
        """See to it that the plan has room for this call, or refuse it.

        Raises:
            BudgetInfeasibleError: no plan within the budget has.
        """
        admission = self._admission
        trace = admission.trace(signature)
        needed = admission.activations_nbytes(signature)
        if trace is None and (needed is None or self._room_nbytes() < needed):
            trace = self._dry(args, kwargs)
            if trace is not None:
                admission.add(signature, trace)
                needed = admission.activations_nbytes(signature)
        if needed is None:
            self._plan_blindly()
            return
        if self._room_nbytes() < needed or not admission.single_row <= self._realigned or self._is_outgrown:
            self._make_room(needed)
        self._admitted = signature
        if trace is not None and not (trace.is_timed and trace.overhead_nbytes):
            self._learning[signature] = trace
        self._footprint.is_measuring = bool(self._learning) or trace is None

    def _room_nbytes(self) -> int:
        return self._installation.plan.reserve.activations_nbytes if self._installation is not None else -1

    def _make_room(self, needed_nbytes: int) -> None:
        present = self._room_nbytes()
        if 0 <= present < needed_nbytes and self._is_growing:
            with contextlib.suppress(BudgetInfeasibleError):  # without headroom, then
                self._replan(int(needed_nbytes * HEADROOM))
                return
        self._is_growing = present >= 0
        self._replan(max(needed_nbytes, present))

    def _plan_blindly(self) -> None:
        """Nothing tells what this call needs: half of the budget is for its activations, or what can be."""
        if self._installation is not None and not self._is_outgrown:
            return
        self._admission.primary = assumed_trace(self.module, self.weights)
        try:
            self._replan(self._budget.nbytes // 2)
        except BudgetInfeasibleError:
            self._replan(0)

    def _dry(self, args: Any, kwargs: Any) -> Trace | None:
        self.attachment.follow(None, ())
        try:
            with self._footprint.uncounted():
                return dry_trace(self.module, self.attachment.root_forward, self.weights, args, kwargs)
        finally:
            if self._installation is not None:
                schedule = self._installation.warm if self._is_settled else self._installation.cold
                self.attachment.follow(self.executor, schedule.sites)

    def _replan(self, activations_nbytes: int) -> None:
        primary = self._admission.primary
        if primary is None:
            raise StreamStateError("no pass was recorded to plan for: call the module first")
        problem = make_problem(
            primary,
            self.weights,
            self._profile,
            budget_nbytes=self._budget.nbytes,
            activations_nbytes=activations_nbytes,
            fixed_nbytes=self._fixed_nbytes,
            overhead_nbytes=self._admission.overhead_nbytes if self._budget.nbytes >= MEASURABLE_NBYTES else 0,
        )
        plan = kept_plan(problem, self._strategy)
        self._is_outgrown = False
        present = self._installation.plan if self._installation is not None else None
        is_same = present is not None and present.problem_fingerprint == plan.problem_fingerprint
        if is_same and self._admission.single_row <= self._realigned:
            return
        self._install(problem, plan)

    def _install(self, problem: Problem, plan: Plan) -> None:
        self._uninstall()
        self._realigned = self._admission.single_row
        installation = Installation(
            plan,
            problem,
            weights=self.weights,
            modules={name: module for name, ref in self._modules.items() if (module := ref()) is not None},
            device=self._device,
            storage=FileStorage(self.checkpoint.files, direct=self._storage.direct),
            realign=self._realigned,
            populate=self._footprint.is_measuring,
        )
        self._installation, self._is_settled = installation, False
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self.module, _Closer(self._storage, self.owned_folder, installation))
        self.executor.install(installation.cold, installation.pipeline)
        self.attachment.follow(self.executor, installation.cold.sites)
        self._peak_nbytes = max(self._peak_nbytes, plan.prediction.peak_nbytes)

    def _uninstall(self) -> None:
        """Give the present plan's memory and threads back."""
        self.attachment.follow(None, ())
        self.executor.suspend()
        if self._installation is not None:
            self._earlier += self._installation.pipeline.stats
            self._installation.close()
        self._installation = self._admitted = None
        self.executor.uninstall()


class _Closer:
    """Ends what would outlive a module that is dropped without `restore`."""

    def __init__(self, storage: FileStorage, folder: Path | None, installation: Installation | None = None) -> None:
        self._storage, self._folder, self._installation = storage, folder, installation

    def __call__(self) -> None:
        if self._installation is not None:
            self._installation.close()
        self._storage.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
