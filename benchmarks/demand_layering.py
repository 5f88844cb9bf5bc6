"""Where storage suffices: the least memory in which passes are hardly longer than the resident model's.

Storage suffices where the resident model computes at least as long as storage needs for all weights, so the batch is
chosen for that. Then budgets are tried in descending order. Both models are in one process, where a model computes at
the same speed each time, and take turns; the number is the median of the ratios of neighbours. The smallest budget
within a limit is run once more by itself, capped at the budget in a memory cgroup.

The shares of the weights that are tried include those of SwapNet's demands (2.32 to 5.81 times the budget) and of
Demand Layering's claim (11.6 %). Two amounts of memory are told: the *weights' part*, which is arena, staging memory
and I/O buffers, what Ji et al. ("Demand Layering", RTSS 2022) count; and *all of it*, the budget, which holds
activations and workspace, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import results, storage
from benchmarks.apart import run_apart
from benchmarks.arm import ArmError, open_arm
from benchmarks.model import Model
from benchmarks.models import find
from benchmarks.run import forget_state, prepare_all, say
from benchmarks.session import AMPLE_NBYTES, Session
from benchmarks.ways import WAYS
from penstock.errors import BudgetInfeasibleError
from penstock.footprint import limit_allocator, retain_little, return_free_memory
from penstock.profile import margin_nbytes

MODELS = "resnet152,vgg16,densenet201,cspdarknet53,vit-large"
SHARES = "50,43.1,30,17.2,11.6,7,5,3.5,2.5,1.8"
MARGINS = "1,4"
LIMITS = (0.01, 0.05)
MOST_INPUTS = 64
MISSES = 2  # so many budgets beyond every limit end the search
LEAD_PASSES = 2
PROBES = 5
_GLIBC_MMAP_NBYTES = 32 << 20  # what glibc's own limit grows to where large blocks are freed
_DEFAULT_OUT = results.FOLDER / "demand_layering.json"


def main(
    models: Annotated[str, typer.Option(help="Comma-separated names.")] = MODELS,
    margins: Annotated[str, typer.Option(help="Computing takes at least so many times as long as reading.")] = MARGINS,
    shares: Annotated[str, typer.Option(help="Arenas to try, per cent of the weights, descending.")] = SHARES,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of passes; 7 for results.")] = 7,
    out: Annotated[Path, typer.Option(help="The results file.")] = _DEFAULT_OUT,
    tiny: Annotated[bool, typer.Option(help="Tiny twins of the models: only to see that all works.")] = False,
) -> None:
    """Measure how little memory is enough."""
    chosen = [find(name, tiny=tiny) for name in models.split(",")]
    percents = [float(part) for part in shares.split(",")]
    settings = {"repeats": repeats, "limits": LIMITS, "tiny": tiny}
    everything = {**results.envelope("demand_layering", settings), "cells": []}
    prepare_all(chosen, [])
    for model in chosen:
        for margin in (float(part) for part in margins.split(",")):
            cell = run_apart(measure, model, margin, percents, repeats)
            cell["least"] = find_least(model.with_batch(cell["batch"]), cell["tries"])
            everything["cells"].append({"model": model.name, "title": model.title, "margin": margin, **cell})
            results.write(out, everything)
            say(describe(everything["cells"][-1]))
    say(f"wrote {out}")


def measure(model: Model, margin: float, percents: Sequence[float], repeats: int) -> dict[str, Any]:
    """The budgets of one model, from the largest down. Runs in a process of its own.

    Raises:
        BudgetInfeasibleError: the model does not even run in more than all of its weights.
    """
    weights_nbytes = model.weights_nbytes()
    probe = storage.BandwidthProbe.of_file(model.weights_file)
    rate = statistics.median(probe.measure() for _ in range(PROBES))
    resident = Session(WAYS["resident"], model, 0)
    resident.load()
    batch = choose_batch(resident, model, margin * weights_nbytes / rate)
    model = model.with_batch(batch)
    found = {
        "batch": batch,
        "weights_nbytes": weights_nbytes,
        "bytes_per_second": rate,
        "resident_seconds": resident.run(lead=1)["seconds"],
        "tries": [],
    }
    ample_nbytes = 2 * weights_nbytes + batch * AMPLE_NBYTES
    before = _try(model, ample_nbytes, resident, 1)
    misses = 0
    for percent in percents:
        reserve_nbytes = before["reserve_nbytes"] - margin_nbytes(before["budget_nbytes"])
        budget_nbytes = int(reserve_nbytes + weights_nbytes * percent / 100)
        budget_nbytes += margin_nbytes(budget_nbytes)
        try:
            before = _try(model, budget_nbytes, resident, repeats)
            found["tries"].append({"percent": percent, "status": "ok", **before})
            misses = misses + 1 if before["overhead"] > max(LIMITS) else 0
        except BudgetInfeasibleError as error:
            found["tries"].append({"percent": percent, "status": "infeasible", "needed_nbytes": error.needed_nbytes})
            misses += 1
        if misses == MISSES:
            break
    return found


def choose_batch(resident: Session, model: Model, seconds: float) -> int:
    """The least power of two of inputs for which the resident model computes so long."""
    batch = 1
    while batch < MOST_INPUTS:
        resident.call_with(model.with_batch(batch))
        samples = resident.burst(lead=1, timed=3)["samples"]
        if statistics.median(sample["seconds"] for sample in samples) >= seconds:
            break
        batch *= 2
    return batch


def _try(model: Model, budget_nbytes: int, resident: Session, repeats: int) -> dict[str, Any]:
    """One budget: how much longer passes are than the resident model's.

    Raises:
        BudgetInfeasibleError: it is too small.
    """
    forget_state()
    for is_first in (True, False):  # the first one's measured times and memory are what the second one plans with
        streamed = Session(WAYS["penstock"], model, budget_nbytes)
        try:
            streamed.load()
            streamed.settle()
            if not is_first:
                pairs = _pairs(resident, streamed, budget_nbytes, repeats)
                plan = streamed.plan()
        finally:
            streamed.close()
    reserve = plan["reserve"]
    return {
        "budget_nbytes": budget_nbytes,
        "weights_part_nbytes": plan["arena_nbytes"] + plan["staging_nbytes"] + reserve["io_nbytes"],
        "reserve_nbytes": sum(reserve.values()),
        "overhead": statistics.median(ours / base for base, ours in pairs) - 1,
        "predicted_seconds": plan["predicted_seconds"],
        "cuts": plan["cuts"],
        "pairs": pairs,
    }


def _pairs(resident: Session, streamed: Session, budget_nbytes: int, repeats: int) -> list[tuple[float, float]]:
    """Neighbouring passes of both, in changing order, each under the allocator's limits that it has by itself."""
    pairs = []
    for number in range(repeats):
        seconds = {}
        for arm in (resident, streamed) if number % 2 else (streamed, resident):
            return_free_memory()
            if arm is resident:
                _retain_as_usual()
            else:
                retain_little(budget_nbytes)
            seconds[arm] = arm.run(lead=LEAD_PASSES)["seconds"]
        pairs.append((seconds[resident], seconds[streamed]))
    return pairs


def _retain_as_usual() -> None:
    """As glibc's allocator does after a few large blocks, where nobody gave it limits."""
    limit_allocator(_GLIBC_MMAP_NBYTES, 2 * _GLIBC_MMAP_NBYTES)


def find_least(model: Model, tries: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """For each limit, the try with the smallest budget within it that also holds in a cgroup; None if none does."""
    peaks: dict[int, int | None] = {}
    found: list[dict[str, Any] | None] = []
    for limit in LIMITS:
        found.append(None)
        within = [one for one in tries if one["status"] == "ok" and one["overhead"] <= limit]
        for one in sorted(within, key=lambda one: int(one["budget_nbytes"])):
            budget_nbytes = one["budget_nbytes"]
            if budget_nbytes not in peaks:
                peaks[budget_nbytes] = _peak(model, budget_nbytes)
            peak_nbytes = peaks[budget_nbytes]
            if peak_nbytes is not None and peak_nbytes <= budget_nbytes:
                kept = ("percent", "budget_nbytes", "weights_part_nbytes", "overhead")
                found[-1] = {"limit": limit, **{name: one[name] for name in kept}, "peak_nbytes": peak_nbytes}
                break
    return found


def _peak(model: Model, budget_nbytes: int) -> int | None:
    """The most memory that the model takes where it is capped at the budget; None if it does not survive there."""
    forget_state()
    for is_capped in (False, True):  # as in `_try`
        with open_arm("penstock", model, budget_nbytes, capped=is_capped) as arm:
            try:
                arm.start()
                arm.wait()
                arm.ask("load")
                arm.ask("settle")
                arm.ask("burst", lead=LEAD_PASSES, timed=1)
            except ArmError:
                return None
            peak_nbytes = arm.group.peak_nbytes() if arm.group is not None else None
    return peak_nbytes


def describe(cell: dict[str, Any]) -> str:
    """One line about a cell."""
    parts = []
    for limit, least in zip(LIMITS, cell["least"], strict=True):
        text = "nothing"
        if least is not None:
            share, whole = (
                100 * least[name] / cell["weights_nbytes"] for name in ("weights_part_nbytes", "budget_nbytes")
            )
            text = f"{share:.1f} % of the weights ({whole:.1f} % with all else)"
        parts.append(f"within {100 * limit:g} %: {text}")
    return f"{cell['title']}, batch {cell['batch']}, {1e3 * cell['resident_seconds']:.0f} ms: {'; '.join(parts)}"


if __name__ == "__main__":
    typer.run(main)
