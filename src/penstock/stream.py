"""A streamed module's handle: its plan, its budget, what it did, and the machinery behind it."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from penstock.budget import Budget, format_size
from penstock.checkpoint import Checkpoint
from penstock.dryrun import dry_trace
from penstock.errors import BudgetInfeasibleError, StreamStateError
from penstock.machine import storage_profile
from penstock.planning import Plan, Problem
from penstock.profile import looks_up_rows, make_problem
from penstock.recorder import Clock, Recorder, heard, listening
from penstock.runtime.attachment import Attachment
from penstock.runtime.binding import BoundWeight, FileViews
from penstock.runtime.devices.base import Device
from penstock.runtime.executor import Executor
from penstock.runtime.pipeline import Pipeline
from penstock.runtime.reading import read_weight
from penstock.runtime.rows import RowTable
from penstock.runtime.schedule import Schedule, make_schedule
from penstock.runtime.storage import FileStorage
from penstock.signature import Signature
from penstock.trace import Trace, TracedCall
from penstock.tracestore import TraceStore, kept_plan

HEADROOM = 1.25
"""Reserve this much more than a larger call needs, so that a growing cache does not ask for a plan each token."""

WORTHWHILE = 0.97
"""Measured times lead to a new plan when it is predicted to take at most this share of the present one's time."""


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
        owned_folder: Path | None = None,
    ) -> None:
        self._module = weakref.ref(module)
        self._modules = {name: weakref.ref(child) for name, child in module.named_modules()}
        self.checkpoint, self.weights = checkpoint, weights
        self._budget, self._device, self._strategy = budget, device, strategy
        self._fixed_nbytes, self.owned_folder = fixed_nbytes, owned_folder
        self._store = TraceStore(module, weights, checkpoint.fingerprint)
        self._profile = storage_profile(checkpoint.files[0].path)
        self._storage = FileStorage(checkpoint.files)
        self._traces: dict[Signature, Trace] = {}
        self._primary: Trace | None = None
        self._realign: frozenset[int] = self._store.single_row()
        self._problem: Problem | None = None
        self._plan: Plan | None = None
        self._pipeline: Pipeline | None = None
        self._warm: Schedule | None = None
        self._last: Signature | None = None
        self._row_nbytes = self._base_nbytes = self._base_demand = 0
        self._base_stall = self._pass_stall = 0.0
        self._peak_nbytes = 0
        self._clocked: set[Signature] = set()
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
        if self._plan is None:
            raise StreamStateError("nothing is planned yet: call the module once, or stream it with an `example`")
        return self._plan

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
                if self._primary is not None:
                    self._replan(self._plan.reserve.activations_nbytes if self._plan else 0)
            except BudgetInfeasibleError:
                self._budget = before
                raise

    @property
    def stats(self) -> StreamStats:
        """Counters so far."""
        live = self._pipeline.stats if self._pipeline is not None else None
        return StreamStats(
            passes=self.executor.passes,
            bytes_read=self._base_nbytes + self._row_nbytes + (live.bytes_read if live else 0),
            stall_seconds=self._stalled(),
            demand_loads=self._base_demand + self.executor.mapped_reads + (live.demand_loads if live else 0),
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
            weight.unbind()
        attachment, executor = self.attachment, self.executor
        attachment.wrap_pass(self._run)
        attachment.guard(self.weights, executor.map_absent)
        attachment.refuse(self.weights)
        attachment.materialise_state(self.weights, lambda weight: read_weight(self._storage, weight.source))
        attachment.show_device(self._device.torch_device)
        for weight in self.weights:
            if looks_up_rows(weight):
                for owner, _ in weight.owners:
                    if isinstance(owner, nn.Embedding) and owner.max_norm is None:
                        attachment.wrap_rows(
                            owner, weight.parameter, RowTable(self._storage, weight.source), self._count_rows
                        )
        module.__dict__["_penstock_stream"] = self

    def prepare(self, args: Any, kwargs: Any) -> None:
        """Plan for calls like this one now, rather than at the first of them."""
        self._admit(Signature.of(args, kwargs), args, kwargs)

    def prepare_from_store(self) -> None:
        """Plan for the kind of call that an earlier process recorded, and begin to load, if there was one."""
        trace = self._store.latest()
        if trace is not None:
            self._primary = trace
            self._replan(trace.activations_nbytes)

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
            self._unload()
            self.attachment.detach()
            self.module.__dict__.pop("_penstock_stream", None)
            self._finalizer.detach()
            self._storage.close()
            if remove_files and self.owned_folder is not None:
                shutil.rmtree(self.owned_folder, ignore_errors=True)

    # -- passes --

    def _run(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        signature = Signature.of(args, kwargs)

        def compute(*args: Any, **kwargs: Any) -> Any:
            return self._compute(signature, args, kwargs)

        def before() -> None:
            self._storage.check_unchanged()
            if signature != self._last:
                self._admit(signature, args, kwargs)

        stalled = self._stalled()
        result = self.executor.run_pass(compute, before, args, kwargs)
        self._pass_stall = self._stalled() - stalled
        self._storage.check_unchanged()
        self._settle()
        return result

    def _compute(self, signature: Signature, args: Any, kwargs: Any) -> Any:
        forward = self.attachment.root_layer
        trace = self._traces.get(signature)
        if trace is None and self._last != signature:
            return self._compute_recorded(signature, args, kwargs)
        is_first = self.executor.is_cold
        if trace is None or trace.is_timed or is_first or signature in self._clocked:
            return forward(*args, **kwargs)
        self._clocked.add(signature)
        clock = Clock(frozenset(call.module for call in trace.calls), self._stalled)
        with listening(clock, self.module, clock.modules):
            result = (heard(clock, "", forward) if "" in clock.modules else forward)(*args, **kwargs)
        timed = clock.timed(trace)
        if timed is not None:
            self._traces[signature] = timed
            self._store.put(signature, timed)
            if trace is self._primary:
                self._primary = timed
        return result

    def _compute_recorded(self, signature: Signature, args: Any, kwargs: Any) -> Any:
        """The first real pass where no dry run was possible: it streams, answers, and is recorded."""
        assert_room = self._activations_limit()
        recorder = Recorder(self.weights, stalled=self._stalled, on_peak=assert_room)
        for load in self._schedule.loads:
            recorder.watch(self.weights.index(load.weight), load.data)
        forward = heard(recorder, "", self.attachment.root_layer)
        with listening(recorder, self.module), recorder:
            result = forward(*args, **kwargs)
        trace = recorder.trace(is_timed=True)
        self._traces[signature] = self._primary = trace
        self._store.put(signature, trace)
        self._last = signature
        self._pending = True
        return result

    def _activations_limit(self) -> Callable[[int], None]:
        plan = self.plan
        room = plan.reserve.activations_nbytes + plan.budget_nbytes - plan.prediction.peak_nbytes
        room = max(room, self._budget.nbytes - plan.arena_nbytes - plan.reserve.io_nbytes - plan.reserve.bookkeeping_nbytes)

        def check(live_nbytes: int) -> None:
            if live_nbytes > room:
                raise BudgetInfeasibleError(
                    f"this call's activations reach {format_size(live_nbytes)}, and the budget of "
                    f"{format_size(self._budget.nbytes)} leaves {format_size(room)} for them: "
                    "call it with smaller inputs or set a larger budget",
                    needed_nbytes=self._budget.nbytes + live_nbytes - room,
                )

        return check

    def _settle(self) -> None:
        """After a pass: let resident layers run free once they are loaded."""
        if self._warm is not None and not self.executor.is_cold:
            self.executor.settle(self._warm)
            self.attachment.follow(self.executor, self._warm.sites)
            self._warm = None

    def _stalled(self) -> float:
        return self._base_stall + (self._pipeline.stats.stall_seconds if self._pipeline is not None else 0.0)

    def _count_rows(self, nbytes: int) -> None:
        self._row_nbytes += nbytes

    # -- planning --

    def _admit(self, signature: Signature, args: Any, kwargs: Any) -> None:
        """See to it that the plan has room for this call, or refuse it.

        Raises:
            BudgetInfeasibleError: no plan within the budget has.
        """
        needed = self._known_need(signature)
        if needed is None or self._plan is None or needed > self._plan.reserve.activations_nbytes:
            trace = self._store.get(signature) or self._dry(args, kwargs)
            if trace is not None:
                self._traces[signature] = trace
                self._store.put(signature, trace)
                needed = trace.activations_nbytes + signature.nbytes
            self._plan_for(trace, needed)
        if signature in self._traces or needed is not None:
            self._last = signature

    def _known_need(self, signature: Signature) -> int | None:
        needs = []
        for known, trace in self._traces.items():
            growth = known.growth_to(signature)
            if growth is not None:
                needs.append(int((trace.activations_nbytes + known.nbytes) * growth))
        return min(needs, default=None)

    def _plan_for(self, trace: Trace | None, needed: int | None) -> None:
        if trace is not None and (self._primary is None or len(trace.calls) > len(self._primary.calls)):
            self._primary = trace
        if self._primary is None:
            self._primary = self._assumed_trace()
        realign = self._realign | (trace.single_row if trace is not None else frozenset())
        present = self._plan.reserve.activations_nbytes if self._plan is not None else 0
        wanted = max(needed or 0, present)
        if self._plan is not None and wanted == present and realign == self._realign:
            return
        self._realign = realign
        if self._plan is not None and wanted > present:
            try:
                self._replan(int(wanted * HEADROOM))
                return
            except BudgetInfeasibleError:
                pass  # without headroom, then
        self._replan(wanted)

    def _dry(self, args: Any, kwargs: Any) -> Trace | None:
        self.attachment.follow(None, ())
        try:
            return dry_trace(self.module, self.attachment.root_forward, self.weights, args, kwargs)
        finally:
            if self._pipeline is not None:
                self.attachment.follow(self.executor, self._schedule.sites)

    def _assumed_trace(self) -> Trace:
        """Before anything is known: layers run in the order in which they were registered."""
        index = {id(weight): i for i, weight in enumerate(self.weights)}
        reads: dict[str, list[int]] = {}
        for weight in self.weights:
            for owner, _ in weight.owners:
                name = next(n for n, ref in self._modules.items() if ref() is owner)
                if not (isinstance(owner, nn.Embedding) and looks_up_rows(weight)):
                    reads.setdefault(name, []).append(index[id(weight)])
        order = [name for name in self._modules if name in reads]
        calls = tuple(
            TracedCall(name, tuple(reads[name]), (), sum(self.weights[i].source.nbytes for i in reads[name]) / 1e10, k)
            for k, name in enumerate(order)
        )
        return Trace(tuple(w.name for w in self.weights), calls, 0, frozenset(), {}, False)

    def _replan(self, activations_nbytes: int) -> None:
        if self._primary is None:
            raise StreamStateError("nothing was traced")
        problem = make_problem(
            self._primary,
            self.weights,
            self._profile,
            budget_nbytes=self._budget.nbytes,
            activations_nbytes=activations_nbytes,
            fixed_nbytes=self._fixed_nbytes,
        )
        self._install(problem, kept_plan(problem, self._strategy))

    def _install(self, problem: Problem, plan: Plan) -> None:
        self._unload()
        modules = {name: module for name, ref in self._modules.items() if (module := ref()) is not None}
        arena = self._device.allocate(plan.arena_nbytes)
        cold, warm = make_schedule(plan, problem, self.weights, modules, arena, self._realign)
        storage = FileStorage(self.checkpoint.files, direct=self._storage.direct)
        self._pipeline = Pipeline(self._device, arena, storage, cold.planned)
        self._problem, self._plan, self._schedule, self._warm = problem, plan, cold, warm
        self._finalizer.detach()
        self._finalizer = weakref.finalize(
            self.module, _Closer(self._storage, self.owned_folder, self._pipeline)
        )
        self.executor.install(cold, self._pipeline)
        self.attachment.follow(self.executor, cold.sites)
        self._peak_nbytes = max(self._peak_nbytes, plan.prediction.peak_nbytes)

    def _unload(self) -> None:
        """Give the present plan's memory and threads back."""
        self.attachment.follow(None, ())
        self.executor.suspend()
        if self._pipeline is not None:
            stats = self._pipeline.stats
            self._base_nbytes += stats.bytes_read
            self._base_stall += stats.stall_seconds
            self._base_demand += stats.demand_loads
            self._pipeline.close()
        self._pipeline = self._warm = self._plan = self._problem = None
        self.__dict__.pop("_schedule", None)


class _Closer:
    """Ends what would outlive a module that is dropped without `restore`."""

    def __init__(self, storage: FileStorage, folder: Path | None, pipeline: Pipeline | None = None) -> None:
        self._storage, self._folder, self._pipeline = storage, folder, pipeline

    def __call__(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
        self._storage.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


