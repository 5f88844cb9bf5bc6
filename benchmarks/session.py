"""One model, loaded and run one way, in this process."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import penstock
from benchmarks import storage
from benchmarks.model import Model
from benchmarks.recast import recast
from benchmarks.ways import WAYS, Way
from penstock.footprint import return_free_memory
from penstock.planning import make_plan
from penstock.planning.bounds import least_warm_seconds
from penstock.planning.simulate import predict
from penstock.runtime.installation import Installation
from penstock.trace import Trace

AMPLE_NBYTES = 2**30
MOST_SETTLING_PASSES = 12
IDLE_SECONDS = 0.04
MAX_IDLE_WAIT_SECONDS = 5.0


class Session:
    """One model, run one way."""

    def __init__(self, way: Way, model: Model, budget_nbytes: int) -> None:
        self._way, self._model, self._budget_nbytes = way, model, budget_nbytes
        self._inputs = model.inputs()
        self._module: nn.Module | None = None
        self._output: Any = None
        self._probed = 0

    def warm_up(self) -> None:
        """The tiny twin, loaded and run, and forgotten."""
        tiny = Session(self._way, self._model.small(), AMPLE_NBYTES)
        tiny.load()
        tiny.run(lead=1)
        tiny.close()

    def import_everything(self) -> None:
        """Loads the tiny twin as its library does, for the imports that it puts off until then, and runs nothing."""
        WAYS["plain"].load(self._model.small(), 0)

    def call_with(self, model: Model) -> None:
        """From now on, the inputs of `model`, which differs in its batch only."""
        self._model, self._inputs = model, model.inputs()

    def load(self) -> dict[str, Any]:
        """Loads the model and runs the first pass."""
        began = time.perf_counter()
        self._module = self._way.load(self._model, self._budget_nbytes)
        loaded = time.perf_counter()
        self._forward()
        answer = {"load_seconds": loaded - began, "first_seconds": time.perf_counter() - began, **self._planned()}
        _wait_until_idle()
        return answer

    def settle(self) -> dict[str, Any]:
        """Passes until everything about the pass was measured, planned with, and what stays in memory is there.

        Others than Penstock have no memory of earlier passes.
        """
        passes = 0
        if self._way.streams:
            handle = self.stream()
            provision, executor = handle._provision, handle._deployment.executor  # a benchmark may look inside
            while passes < MOST_SETTLING_PASSES and (
                provision.learning or provision.is_outgrown or executor.is_cold or not passes
            ):
                self._forward()
                passes += 1
            _wait_until_idle()
        return {"passes": passes}

    def run(self, lead: int) -> dict[str, Any]:
        """One timed pass: see `burst`."""
        sample: dict[str, Any] = self.burst(lead, 1)["samples"][0]
        return sample

    def burst(self, lead: int, timed: int) -> dict[str, Any]:
        """`lead` untimed passes and, right after them, timed ones; then waits for what is read ahead.

        The lead makes them passes among others: after a pause, Penstock would find its arena full of what it needs.
        `bytes_read` is what was read while the timed pass ran, `bytes_streamed` what a pass streams on average.
        """
        before = self._bytes_read()
        for _ in range(lead):
            self._forward()
        samples = []
        for _ in range(timed):
            at_begin, began = self._bytes_read(), time.perf_counter()
            self._forward()
            seconds, read = time.perf_counter() - began, self._bytes_read() - at_begin
            stall = self.stream().stats.pass_stall_seconds if self._way.streams else 0.0
            samples.append({"seconds": seconds, "stall_seconds": stall, "bytes_read": read})
        _wait_until_idle()
        streamed = (self._bytes_read() - before) / (lead + timed)
        return {"samples": [{**sample, "bytes_streamed": streamed} for sample in samples]}

    def bandwidth(self) -> dict[str, Any]:
        """What storage gives into this stream's own memory, between passes; 0.0 where that is too little to tell."""
        probe = storage.BandwidthProbe.in_place(self.stream(), self._probed)
        rate = probe.measure()
        self._probed = probe.position
        return {"bytes_per_second": rate}

    def plan(self) -> dict[str, Any]:
        """The plan in force in numbers, and how long it takes to make it once more."""
        found = self.installation()
        plan = found.plan
        began = time.perf_counter()
        make_plan(found.problem, plan.strategy)
        planning_seconds = time.perf_counter() - began
        return {
            "strategy": plan.strategy,
            "planning_seconds": planning_seconds,
            "predicted_seconds": plan.prediction.warm_seconds,
            "bound_seconds": plan.prediction.lower_bound_seconds,
            "gap": plan.prediction.gap,
            "compute_seconds": found.problem.compute_seconds,
            "arena_nbytes": plan.arena_nbytes,
            "staging_nbytes": plan.staging_nbytes,
            "reserve": asdict(plan.reserve),
            "loads": len(plan.loads),
            "cuts": len(plan.cuts),
            "details": dict(plan.details),
        }

    def predict(self, bytes_per_second: float, compute_seconds: float) -> dict[str, Any]:
        """What the plan in force promises, and what no plan can beat, where storage and computing are so fast."""
        found = self.installation()
        problem = recast(found.problem, bytes_per_second, compute_seconds=compute_seconds)
        return {
            "predicted_seconds": predict(problem, found.plan).warm_seconds,
            "bound_seconds": least_warm_seconds(problem),
        }

    def drop(self) -> dict[str, Any]:
        """Takes what the arm reads out of the page cache."""
        storage.drop(self._way.folder(self._model))
        return {}

    def save(self, path: str) -> dict[str, Any]:
        """Writes the last output, for comparison."""
        save_file({"output": first_tensor(self._output).contiguous()}, path)
        return {}

    def close(self) -> None:
        """Forgets the model and gives its memory back to the system."""
        if self._module is not None and self._way.streams:
            self.stream().close()
        self._module = self._output = None
        gc.collect()
        return_free_memory()

    def stream(self) -> penstock.Stream:
        """The handle of a streamed model that is loaded."""
        return penstock.inspect(self._loaded)

    def trace(self) -> Trace:
        """What is known of the pass."""
        found = self.stream()._provision.admission.primary
        if found is None:
            raise RuntimeError("nothing is traced")
        return found

    def installation(self) -> Installation:
        """The plan in force, with its problem."""
        found = self.stream()._deployment.installation
        if found is None:
            raise RuntimeError("nothing is planned")
        return found

    @property
    def _loaded(self) -> nn.Module:
        if self._module is None:
            raise RuntimeError("nothing is loaded")
        return self._module

    def _forward(self) -> None:
        self._output = None
        with torch.inference_mode():
            self._output = self._loaded(**self._inputs)

    def _bytes_read(self) -> int:
        return self.stream().stats.bytes_read if self._way.streams else 0

    def _planned(self) -> dict[str, Any]:
        """Bytes that the plan's first pass loads, and those of tables that it reads by rows."""
        if not self._way.streams:
            return {}
        handle = self.stream()
        plan = handle.plan
        loaded = {slot.weight for slot in plan.resident} | {load.weight for load in plan.loads}
        return {
            "planned_nbytes": sum(plan.weight_nbytes[index] for index in loaded),
            "row_tables_nbytes": sum(plan.weight_nbytes[index] for index in plan.rows),
            "predicted_seconds": plan.prediction.warm_seconds,
            "demand_loads": handle.stats.demand_loads,
        }


def first_tensor(output: Any) -> torch.Tensor:
    """The output, or the first tensor of several."""
    return output if isinstance(output, torch.Tensor) else first_tensor(output[0])


def quiet() -> None:
    """No progress bars and no advice from transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _wait_until_idle() -> None:
    """Returns when this process has read nothing from storage for a while."""
    deadline = time.perf_counter() + MAX_IDLE_WAIT_SECONDS
    before = -1
    while (now := _read_nbytes()) != before and time.perf_counter() < deadline:
        before = now
        time.sleep(IDLE_SECONDS)


def _read_nbytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0
