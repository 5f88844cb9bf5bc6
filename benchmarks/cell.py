"""One cell of the main benchmark: one model inside one budget, all arms in turn."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import storage
from benchmarks.arm import Arm, ArmError, limit_hits, open_arm
from benchmarks.models import Model
from benchmarks.results import lower_bound_seconds, median

WARM_UP_PASSES = {"penstock": 7}  # so that its plan has settled; others have no memory of earlier passes
LEAD_PASSES = 2  # right before each timed pass of Penstock, whose arena is full after a pause


@dataclass
class Run:
    """What one arm does in one cell."""

    arm: Arm
    samples: list[dict[str, Any]] = field(default_factory=list)
    loaded: dict[str, Any] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)
    cached_nbytes: int = 0
    failure: ArmError | None = None
    killed_at_cap: bool = False

    @property
    def alive(self) -> bool:
        """Whether it can be asked for another pass."""
        return self.failure is None


def measure_cell(
    model: Model, budget_nbytes: int, names: Sequence[str], resident: Arm, *, repeats: int
) -> dict[str, Any]:
    """Runs the arms `names` and the resident one in turn; all samples, and what follows from them.

    An arm that the kernel kills at its cap starts again without one, which favours it, and is marked.

    Args:
        model: what to run.
        budget_nbytes: within how much.
        names: the arms to start.
        resident: the arm beside them, running already: one serves all budgets.
        repeats: timed passes of each.
    """
    probe = storage.BandwidthProbe.of_file(model.weights_file)
    with contextlib.ExitStack() as stack:
        runs = [Run(stack.enter_context(open_arm(name, model, budget_nbytes))) for name in names]
        for run in runs:
            run.arm.start()
        for run in runs:
            _trying(run, stack, _get_ready)
        runs.insert(0, Run(resident))
        for number in range(repeats):
            for run in runs[number % len(runs) :] + runs[: number % len(runs)]:
                _trying(run, stack, lambda run: _pass(run, probe))
        for run in runs:  # those that had to start again have fewer
            while run.alive and len(run.samples) < repeats:
                _trying(run, stack, lambda run: _pass(run, probe))
        reference = _output(runs[0])
        records = {run.arm.name: _record(run, reference) for run in runs}
    return {"budget_nbytes": budget_nbytes, **_derived(records, budget_nbytes, model), "arms": records}


def _trying(run: Run, stack: contextlib.ExitStack, step: Callable[[Run], None]) -> None:
    """An arm that fails fails alone, and the others go on; one that was killed at its cap starts again without."""
    if not run.alive:
        return
    try:
        step(run)
    except ArmError as error:
        if error.status != "killed" or not run.arm.is_capped:
            run.failure = error
            return
        run.arm.close()
        run.arm = stack.enter_context(open_arm(run.arm.name, run.arm.model, run.arm.budget_nbytes, capped=False))
        run.killed_at_cap = True
        run.samples, run.bandwidths = [], []
        run.arm.start()
        _trying(run, stack, _get_ready)


def _get_ready(run: Run) -> None:
    run.arm.wait()
    _drop(run)
    run.loaded = run.arm.ask("load")
    for _ in range(WARM_UP_PASSES.get(run.arm.name, 1) - 1):
        run.arm.ask("run", lead=0)


def _pass(run: Run, probe: storage.BandwidthProbe) -> None:
    """One timed pass, storage measured right before; for Penstock right after, too, in its own memory if possible."""
    if run.arm.name == "resident":
        run.samples.append(run.arm.ask("run", lead=0))
        return
    _drop(run)
    if run.arm.name != "penstock":
        run.bandwidths.append(probe.measure())
        run.samples.append(run.arm.ask("run", lead=0))
        return
    run.bandwidths.append(run.arm.ask("bandwidth")["bytes_per_second"] or probe.measure())
    run.samples.append(run.arm.ask("run", lead=LEAD_PASSES))
    run.bandwidths.append(run.arm.ask("bandwidth")["bytes_per_second"] or probe.measure())


def _drop(run: Run) -> None:
    way, model = run.arm.way, run.arm.model
    if way.uses_page_cache:
        run.arm.ask("drop")
        run.cached_nbytes = max(run.cached_nbytes, storage.cached_nbytes(way.folder(model)))


def _record(run: Run, reference: torch.Tensor | None) -> dict[str, Any]:
    group, failure = run.arm.group, run.failure
    record: dict[str, Any] = {
        "status": failure.status if failure is not None else "ok",
        "reason": failure.reason if failure is not None else None,
        "needed_nbytes": failure.needed_nbytes if failure is not None else None,
        "median_seconds": median([sample["seconds"] for sample in run.samples]) if run.alive else None,
        "seconds": [sample["seconds"] for sample in run.samples],
        "bandwidths": run.bandwidths,
        "capped": run.arm.is_capped,
        "killed_at_cap": run.killed_at_cap,
        "peak_nbytes": group.peak_nbytes() if group is not None else None,
        "limit_hits": limit_hits(group) if group is not None else None,
        "peak_source": f"cgroup v{group.version}" if group is not None else None,
        "cached_nbytes_before_pass": run.cached_nbytes,
        **run.loaded,
    }
    if run.arm.name == "penstock":
        for name in ("stall_seconds", "bytes_read", "bytes_streamed"):
            record[name] = [sample[name] for sample in run.samples]
    if reference is not None and run.alive:
        record |= _compared(_output(run), reference)
    return record


def _output(run: Run) -> torch.Tensor | None:
    """The last output. Asked for last of all: what it takes to write it is not the arm's."""
    if not run.alive:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "output.safetensors"
        try:
            if run.arm.group is not None:
                run.arm.group.set_limit(None)
            run.arm.ask("save", path=str(file))
        except ArmError:
            return None
        return load_file(file)["output"].clone()


def _compared(output: torch.Tensor | None, reference: torch.Tensor) -> dict[str, Any]:
    if output is None:
        return {}
    error = ((output.float() - reference.float()).abs().max() / reference.float().abs().max()).item()
    return {"bit_identical": torch.equal(output, reference), "relative_error": error if error == error else None}


def _derived(records: dict[str, dict[str, Any]], budget_nbytes: int, model: Model) -> dict[str, Any]:
    """The numbers of the tables."""
    ours, resident = records.get("penstock"), records["resident"]
    derived: dict[str, Any] = {"status": ours["status"] if ours is not None else "ok"}
    if ours is None or ours["status"] != "ok" or resident["status"] != "ok":
        derived["needed_nbytes"] = ours["needed_nbytes"] if ours is not None else None
        return derived
    warm, base = ours["median_seconds"], resident["median_seconds"]
    nbytes = statistics.median(ours["bytes_read"])
    # Storage gave at least what Penstock drew from it, if a probe found less.
    drawn = statistics.median(read / seconds for read, seconds in zip(ours["bytes_read"], ours["seconds"], strict=True))
    bandwidth = max(drawn, statistics.median(ours["bandwidths"]))
    bound = lower_bound_seconds(base, nbytes, bandwidth)
    least_nbytes = max(0, model.weights_nbytes() - ours["row_tables_nbytes"] - budget_nbytes)
    return derived | {
        "resident_seconds": base,
        "warm_seconds": warm,
        "bytes_read": nbytes,
        "bytes_streamed": statistics.median(ours["bytes_streamed"]),
        "least_nbytes": least_nbytes,
        "bytes_per_second": bandwidth,
        "lower_bound_seconds": bound,
        "ratio": warm / bound,
        "ratio_to_least": warm / lower_bound_seconds(base, least_nbytes, bandwidth),
        "slowdown": warm / base,
        "stall_seconds": statistics.median(ours["stall_seconds"]),
        "peak_nbytes": ours["peak_nbytes"],
        "killed_at_cap": ours["killed_at_cap"],
        "bit_identical": ours.get("bit_identical"),
        "speedups": {
            name: record["median_seconds"] / warm
            for name, record in records.items()
            if name not in ("penstock", "resident") and record["status"] == "ok"
        },
    }
