"""A streamed module's handle: its plan, its budget, what it did; and how each of its passes is run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.budget import Budget, format_size
from penstock.checkpoint import Checkpoint
from penstock.errors import StreamStateError
from penstock.footprint import without_holes
from penstock.listening import Clock, heard, listening
from penstock.planmaking import refusing_beyond
from penstock.planning import Plan
from penstock.provision import Provision
from penstock.recorder import Recorder
from penstock.report.predicted import predicted_tracks
from penstock.report.recorded import Recording
from penstock.report.timeline import Tracks
from penstock.runtime.binding import BoundWeight
from penstock.runtime.events import EventLog
from penstock.runtime.reading import read_weight
from penstock.runtime.rows import RowTable
from penstock.runtime.storage import FileStorage
from penstock.signature import Signature
from penstock.stats import StreamStats
from penstock.terms import Terms
from penstock.workload import Workload, find_workload


class Stream:
    """What `penstock.inspect` returns."""

    def __init__(self, provision: Provision) -> None:
        self._provision, self._deployment = provision, provision.deployment
        self._row_nbytes = 0
        self._pass_stall_seconds = 0.0

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the weights are read from."""
        return self._provision.checkpoint

    @property
    def weights(self) -> list[BoundWeight]:
        """Every streamed weight, in registration order."""
        return self._provision.weights

    @property
    def owned_folder(self) -> Path | None:
        """The folder that was written for this stream, if one was."""
        return self._deployment.owned_folder

    @property
    def terms(self) -> Terms:
        """Budget, device and strategy."""
        return self._provision.terms

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that streams, not a fork of it, in which only `stream` and `restore` work."""
        return self._deployment.is_own_process

    @property
    def plan(self) -> Plan:
        """The plan in force.

        Raises:
            StreamStateError: nothing is planned before the first call, where no `example` was given.
        """
        return self._deployment.plan

    @property
    def budget(self) -> Budget:
        """The byte cap. Setting it, while no pass runs, plans again.

        Raises:
            BudgetInfeasibleError: no plan fits the new one; the old one stays in force.
        """
        return self._provision.terms.budget

    @budget.setter
    def budget(self, value: int | str | Budget) -> None:
        budget = Budget(value)
        with self._deployment.executor.exclusively():
            self._provision.set_budget(budget)

    @property
    def stats(self) -> StreamStats:
        """Counters so far."""
        total, executor = self._deployment.stats(), self._deployment.executor
        return StreamStats(
            passes=executor.passes,
            bytes_read=total.bytes_read + self._row_nbytes,
            stall_seconds=total.stall_seconds,
            demand_loads=total.demand_loads + executor.holdings.mapped_reads,
            peak_nbytes=self._deployment.peak_nbytes,
            pass_stall_seconds=self._pass_stall_seconds,
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

    @contextlib.contextmanager
    def record(self) -> Iterator[Recording]:
        """Note what storage, layers and waits do in the block, for a timeline: `recording.save("trace.json")`.

        Layers whose weights are all resident are not attended to; the timeline shows them as one between the others.
        What is noted lies outside the budget, about a kilobyte for each load of a pass, and ends at some thousand
        passes' worth of it.

        Raises:
            StreamStateError: it is being recorded already, or a pass of this very thread runs.
        """
        deployment = self._deployment
        log = EventLog(deployment.layer_names())
        with deployment.executor.exclusively():
            if deployment.executor.events is not None:
                raise StreamStateError("this stream is being recorded already: end that recording first")
            deployment.record(log)
        try:
            yield Recording(log, f"{self._title()}, as it ran")
        finally:
            with deployment.executor.exclusively():
                deployment.record(None)

    def predicted(self) -> Tracks:
        """The first passes as the plan in force predicts them, for a timeline: `stream.predicted().save(path)`.

        Raises:
            StreamStateError: nothing is planned yet.
        """
        with self._deployment.executor.exclusively():
            found = self._deployment.in_force()
            title = f"{self._title()}, predicted ({found.plan.strategy})"
            return predicted_tracks(found.problem, found.plan, title)

    def _title(self) -> str:
        return f"{type(self._deployment.module).__name__} within {format_size(self.budget.nbytes)}"

    def __repr__(self) -> str:
        return f"<penstock.Stream of {self._title()}>"

    def workload(self, args: Any, kwargs: Any) -> Workload:
        """What calls like this one ask of any budget."""
        provision = self._provision
        with self._deployment.executor.exclusively():
            return find_workload(
                self._deployment.module,
                provision.weights,
                provision.checkpoint,
                args,
                kwargs,
                dry=provision.dry,
                fixed_nbytes=provision.fixed_nbytes,
            )

    # -- setting up --

    def attach(self) -> None:
        """Take the module over: every weight unreadable, every call through the executor."""
        provision, module = self._provision, self._deployment.module
        attachment, executor, storage = self._deployment.attachment, self._deployment.executor, self._deployment.storage
        for weight in self.weights:
            weight.adopt()
        attachment.wrap_pass(self._run)
        executor.guard = provision.guard
        attachment.guard(self.weights, executor.map_absent)
        attachment.refuse(self.weights)
        attachment.materialise_state(self.weights, lambda weight: weight.laid_out(read_weight(storage, weight.source)))
        attachment.show_device(provision.terms.device.torch_device)
        for weight in self.weights:
            for path in weight.row_paths:
                table = RowTable(storage, weight.source)
                owner = module.get_submodule(path)
                attachment.wrap_rows(owner, weight.parameter, table, executor.holdings, self._count_rows)
        attachment.await_plan({id(o): o for w in self.weights for o, _ in w.owners}.values(), self._plan_for_a_layer)
        module.__dict__["_penstock_stream"] = self

    def _plan_for_a_layer(self) -> None:
        """A layer is called outside a pass before anything is planned (`model.encode_image(...)`)."""
        with self._deployment.executor.exclusively():
            self._provision.plan_blindly()

    def prepare(self, example: tuple[Any, Any] | None) -> None:
        """Plan now for calls with these arguments, or for what an earlier process recorded, if one did."""
        if example is not None:
            self._provision.admit(Signature.of(*example), *example)
        else:
            self._provision.begin_from_store()
        self._provision.footprint.leave()

    def result_like(self, args: Any, kwargs: Any) -> Any:
        """What a call with these arguments would return, in fake tensors: shapes without data; None if unknown."""
        with self._deployment.executor.exclusively():
            return self._provision.dry_result(args, kwargs)

    def close(self, *, remove_files: bool = True) -> None:
        """Undo everything but the weights: no thread, descriptor, hook or file is left. Weights stay unreadable."""
        with self._deployment.executor.exclusively():
            self._deployment.close(remove_files=remove_files)
            self._deployment.module.__dict__.pop("_penstock_stream", None)

    def make_resident(self) -> None:
        """Read every weight into memory, then close.

        Raises:
            CheckpointError, StorageError: its weights cannot be read; it is still streamed then.
        """
        weights = self.weights
        with self._deployment.executor.exclusively():
            storage = FileStorage(self.checkpoint.files)
            try:
                loaded = [
                    weight.laid_out(read_weight(storage, weight.source, realign=weight.is_aligned or weight.must_move))
                    for weight in weights
                ]
            finally:
                storage.close()
            self.close()
            for weight, data in zip(weights, loaded, strict=True):
                weight.bind(data)

    # -- passes --

    def _run(self, args: Any, kwargs: Any) -> Any:
        provision = self._provision
        signature = Signature.of(args, kwargs)
        stalled_seconds = self._deployment.stall_seconds()

        def before() -> None:
            self._deployment.storage.check_unchanged()
            provision.footprint.enter(provision.room_nbytes)
            if signature != provision.admitted:
                provision.admit(signature, args, kwargs)

        def compute(*args: Any, **kwargs: Any) -> Any:
            is_first = provision.is_first(signature)
            with without_holes() if is_first else contextlib.nullcontext():
                return self._compute(signature, args, kwargs, is_first=is_first)

        def after() -> None:
            self._deployment.storage.check_unchanged()
            self._pass_stall_seconds = self._deployment.stall_seconds() - stalled_seconds
            provision.settle(signature)
            provision.footprint.leave()

        return self._deployment.executor.run_pass(compute, args, kwargs, before=before, after=after)

    def _compute(self, signature: Signature, args: Any, kwargs: Any, *, is_first: bool) -> Any:
        """The pass itself: as it is, or recorded, timed and measured where something is still to be learnt.

        A first one, and one in which residents are still to come, takes other time and memory than those after it.
        """
        provision = self._provision
        forward = self._deployment.attachment.root_layer
        if signature != provision.admitted:
            return self._compute_recorded(signature, args, kwargs)
        trace = provision.admission.trace(signature) if signature in provision.learning else None
        if trace is None or is_first or self._deployment.executor.is_cold:
            return forward(*args, **kwargs)
        clock = Clock(frozenset(call.module for call in trace.calls), self._deployment.stall_seconds)
        with listening(clock, self._deployment.module, clock.modules):
            result = (heard(clock, "", forward) if "" in clock.modules else forward)(*args, **kwargs)
        provision.learn(signature, clock.timed(trace, provision.lost_seconds()) or trace)
        return result

    def _compute_recorded(self, signature: Signature, args: Any, kwargs: Any) -> Any:
        """The first real pass where no dry run was possible: it streams, answers, and is recorded."""
        provision = self._provision
        recorder = Recorder(
            self.weights, stalled=self._deployment.stall_seconds, on_peak=refusing_beyond(self.plan, self.budget.nbytes)
        )
        if self._deployment.installation is not None:
            index = {id(weight): position for position, weight in enumerate(self.weights)}
            for load in self._deployment.installation.cold.loads:
                for weight, data in zip(load.weights, load.data, strict=False):
                    recorder.watch(index[id(weight.whole)], data)
        forward = heard(recorder, "", self._deployment.attachment.root_layer)
        with listening(recorder, self._deployment.module), recorder:
            result = forward(*args, **kwargs)
        provision.learn_anew(signature, recorder.trace(is_timed=True, arguments_nbytes=signature.nbytes))
        return result

    def _count_rows(self, nbytes: int, since: float) -> None:
        self._row_nbytes += nbytes
        if self._deployment.executor.events is not None:
            self._deployment.executor.events.rows_read(nbytes, since)
