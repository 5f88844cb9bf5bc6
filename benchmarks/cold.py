"""Cold start: from a started interpreter with imports done to the first output, in a new process each time.

Penstock's checkpoint was traced by an earlier process, as in daily use; the very first process, which traces the model
and measures the drive, is reported apart. The rival is transformers' `from_pretrained` and a forward with the page
cache dropped (for VGG-16, `load_state_dict` from the mapped file). Imports that transformers puts off until it loads a
model are done, by loading the tiny twin; nothing has been run, so thread pools and oneDNN kernels count.
"""

from __future__ import annotations

import shutil
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import results, storage
from benchmarks.arm import Arm, ArmError, open_arm, state_folder
from benchmarks.model import Model
from benchmarks.models import RUN, find
from benchmarks.results import lower_bound_seconds, median
from benchmarks.run import MIN_REPEATS, forget_state, open_resident, prepare_all, say

FIRST, SECOND, PLAIN = "penstock_first", "penstock", "from_pretrained"
_WAYS = {FIRST: "penstock", SECOND: "penstock", PLAIN: "plain"}
MAX_TRIES, GROWTH = 20, 1.1  # measured needs differ from process to process
LEARNING_PASSES = 4  # three are measured, and the next one plans with what they told
_DEFAULT_OUT = results.FOLDER / "cold.json"


def main(
    models: Annotated[str, typer.Option(help="Comma-separated names.")] = ",".join(RUN),
    budget: Annotated[int, typer.Option(help="Per cent of the weights; raised until it runs.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help=f"Starts of each; {MIN_REPEATS} for results.")] = MIN_REPEATS,
    first_repeats: Annotated[int, typer.Option(min=1, help="Starts of the very first process.")] = 3,
    out: Annotated[Path, typer.Option(help="The results file.")] = _DEFAULT_OUT,
    tiny: Annotated[bool, typer.Option(help="Tiny twins of the models: only to see that all works.")] = False,
) -> None:
    """Measure cold starts."""
    chosen = [find(name, tiny=tiny) for name in models.split(",")]
    settings = {"repeats": repeats, "first_repeats": first_repeats, "budget": budget, "tiny": tiny}
    everything = {**results.envelope("cold", settings), "cells": []}
    prepare_all(chosen, [])
    forget_state()
    for model in chosen:
        everything["cells"].append(measure(model, budget, repeats, first_repeats))
        results.write(out, everything)
        say(describe(everything["cells"][-1]))
    say(f"wrote {out}")


def measure(model: Model, percent: int, repeats: int, first_repeats: int) -> dict[str, Any]:
    """One model: alternating starts, and the resident time in the same run."""
    weights_nbytes = model.weights_nbytes()
    budget_nbytes = weights_nbytes * percent // 100
    taken, reason = Starts(), None
    try:
        budget_nbytes = _feasible(model, budget_nbytes)
        with open_resident(model) as resident:
            _alternate(taken, model, budget_nbytes, resident, repeats, first_repeats)
    except ArmError as error:
        reason = str(error)
    return {
        "model": model.name,
        "title": model.title,
        "weights_nbytes": weights_nbytes,
        "budget_nbytes": budget_nbytes,
        "status": "ok" if reason is None else "error",
        "reason": reason,
        **_derived(taken),
        **asdict(taken),
    }


@dataclass
class Starts:
    """What was measured of one model: each start's report, resident passes and storage's speed in between."""

    samples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in _WAYS})
    resident_samples: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)


def _alternate(
    taken: Starts, model: Model, budget_nbytes: int, resident: Arm, repeats: int, first_repeats: int
) -> None:
    probe = storage.BandwidthProbe.of_file(model.weights_file)
    for number in range(max(repeats, first_repeats)):
        names = [FIRST] if number < first_repeats else []
        if number < repeats:
            names += [SECOND, PLAIN] if number % 2 else [PLAIN, SECOND]
        for name in names:
            taken.samples[name].append(_start(name, model, budget_nbytes, probe, taken.bandwidths))
        taken.resident_samples.append(resident.ask("run", lead=0)["seconds"])


def _start(name: str, model: Model, budget_nbytes: int, probe: storage.BandwidthProbe, rates: list[float]) -> Any:
    """One process from its imports to its first output."""
    if name == FIRST:
        shutil.rmtree(state_folder(), ignore_errors=True)
    with open_arm(_WAYS[name], model, budget_nbytes, capped=False) as arm:
        arm.start(warm_up="imports")
        arm.wait()
        storage.drop(model.checkpoint)
        rates.append(probe.measure())
        answer = arm.ask("load")
        if name == FIRST:
            _learn(arm)
        return answer


def _learn(arm: Arm) -> None:
    """The second process is to find a plan that knows measured times and memory, as it would in daily use."""
    for _ in range(LEARNING_PASSES):
        arm.ask("run", lead=0)


def _feasible(model: Model, budget_nbytes: int) -> int:
    """The budget, or more, until the model runs in a first process and, measured, in a second one.

    Raises:
        ArmError: it does not.
    """
    for tries in range(1, MAX_TRIES + 1):
        shutil.rmtree(state_folder(), ignore_errors=True)
        try:
            for _ in range(2):
                with open_arm("penstock", model, budget_nbytes, capped=False) as arm:
                    arm.start(warm_up="imports")
                    arm.wait()
                    arm.ask("load")
                    _learn(arm)
        except ArmError as error:
            if error.needed_nbytes is None or tries == MAX_TRIES:
                raise
            budget_nbytes = int(GROWTH * max(error.needed_nbytes, budget_nbytes))
        else:
            break
    return budget_nbytes


def _derived(taken: Starts) -> dict[str, Any]:
    medians = {name: median([sample["first_seconds"] for sample in some]) for name, some in taken.samples.items()}
    ours, theirs = medians[SECOND], medians[PLAIN]
    if ours is None or theirs is None or not taken.resident_samples:
        return {"medians": medians}
    base, bandwidth = statistics.median(taken.resident_samples), statistics.median(taken.bandwidths)
    nbytes = statistics.median(sample["planned_nbytes"] for sample in taken.samples[SECOND])
    bound = lower_bound_seconds(base, nbytes, bandwidth)
    return {
        "medians": medians,
        "resident_seconds": base,
        "bytes_per_second": bandwidth,
        "nbytes": nbytes,
        "lower_bound_seconds": bound,
        "ratio": ours / bound,
        "speedup": theirs / ours,
    }


def describe(cell: dict[str, Any]) -> str:
    """One line about a cell."""
    if "ratio" not in cell:
        return f"{cell['title']}: {cell['reason']}"
    milliseconds = {name: f"{1e3 * seconds:.0f} ms" for name, seconds in cell["medians"].items()}
    return (
        f"{cell['title']}: first output after {milliseconds[SECOND]} ({milliseconds[FIRST]} untraced, "
        f"{milliseconds[PLAIN]} from_pretrained), ratio {cell['ratio']:.2f}"
    )


if __name__ == "__main__":
    typer.run(main)
