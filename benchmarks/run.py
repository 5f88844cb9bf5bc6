"""The main benchmark: every model inside every budget, Penstock against the resident model and three rivals.

Arms are processes of their own that take turns, each in a memory cgroup that holds it to its budget; see `child.py` for
the baseline and `cell.py` for a cell. Rivals run at two budgets only: their times hardly depend on it, and a pass of
theirs takes several of Penstock's.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import results
from benchmarks.arm import REPOSITORY, Arm, ArmError, child_environment, open_arm, state_folder
from benchmarks.cell import Record, Turn, bandwidth, open_cell
from benchmarks.model import Model, root
from benchmarks.models import RUN, find
from benchmarks.results import lower_bound_seconds
from benchmarks.ways import RIVALS, WAYS

MIN_REPEATS = 7
_DEFAULT_OUT = results.FOLDER / "run.json"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    models: Annotated[str, typer.Option(help="Comma-separated names.")] = ",".join(RUN),
    budgets: Annotated[str, typer.Option(help="Per cent of the weights.")] = "10,20,30,50,100",
    arms: Annotated[str, typer.Option(help="Besides the resident one.")] = ",".join(("penstock", *RIVALS)),
    rival_budgets: Annotated[str, typer.Option(help="Budgets at which rivals run.")] = "20,50",
    repeats: Annotated[int, typer.Option(min=1, help=f"Passes of each arm; {MIN_REPEATS} for results.")] = MIN_REPEATS,
    out: Annotated[Path, typer.Option(help="The results file.")] = _DEFAULT_OUT,
    tiny: Annotated[bool, typer.Option(help="Tiny twins of the models: only to see that all works.")] = False,
) -> None:
    """Measure warm latency, peak memory and speed-ups."""
    chosen = [find(name, tiny=tiny) for name in models.split(",")]
    names = choose(arms)
    settings = {"repeats": repeats, "budgets": budgets, "rival_budgets": rival_budgets, "tiny": tiny}
    everything = {**results.envelope("run", settings), "cells": []}
    prepare_all(chosen, names)
    forget_state()
    at_rivals = _percents(rival_budgets)
    for model in chosen:
        plan = [
            (percent, [name for name in names if name not in RIVALS or percent in at_rivals])
            for percent in _percents(budgets)
        ]
        for cell in measure_model(model, plan, repeats=repeats):
            everything["cells"].append(cell)
            results.write(out, everything)
    say(f"wrote {out}")


def choose(arms: str) -> list[str]:
    """The arms named in `arms`.

    Raises:
        typer.BadParameter: one is unknown.
    """
    names = [name for name in arms.split(",") if name != "resident"]
    for name in names:
        if name not in WAYS:
            raise typer.BadParameter(f"no arm {name!r}: choose from {', '.join(WAYS)}")
    return names


def measure_model(model: Model, plan: Sequence[tuple[int, list[str]]], *, repeats: int) -> list[dict[str, Any]]:
    """The cells of one model; `plan` has each budget in per cent and its arms."""
    weights_nbytes = model.weights_nbytes()
    cells = []
    with open_resident(model) as resident:
        for percent, names in plan:
            began = time.monotonic()
            budget_nbytes = weights_nbytes * percent // 100
            cell = measure_cell(model, budget_nbytes, names, resident, repeats)
            head = {"model": model.name, "title": model.title, "weights_nbytes": weights_nbytes}
            cells.append({**head, "budget_percent": percent, **cell})
            say(f"{describe(cells[-1])}  [{time.monotonic() - began:.0f} s]")
    return cells


def measure_cell(model: Model, budget_nbytes: int, names: Sequence[str], resident: Arm, repeats: int) -> dict[str, Any]:
    """All samples of one cell, and what follows from them."""
    with open_cell(model, budget_nbytes, names, resident) as cell:
        cell.take_turns(repeats, Turn())
        records = cell.records()
    return {"budget_nbytes": budget_nbytes, **_derived(records, budget_nbytes, model), "arms": records}


def _derived(records: dict[str, Record], budget_nbytes: int, model: Model) -> dict[str, Any]:
    """The numbers of the tables."""
    ours, resident = records.get("penstock"), records["resident"]
    derived: dict[str, Any] = {"status": ours["status"] if ours is not None else "ok"}
    if ours is None or ours["status"] != "ok":
        derived["needed_nbytes"] = ours["needed_nbytes"] if ours is not None else None
        return derived
    warm, base = ours["median_seconds"], resident["median_seconds"]
    nbytes, rate = statistics.median(ours["bytes_read"]), bandwidth(ours)
    bound = lower_bound_seconds(base, nbytes, rate)
    least_nbytes = max(0, model.weights_nbytes() - ours["row_tables_nbytes"] - budget_nbytes)
    return derived | {
        "resident_seconds": base,
        "warm_seconds": warm,
        "bytes_read": nbytes,
        "bytes_streamed": statistics.median(ours["bytes_streamed"]),
        "least_nbytes": least_nbytes,
        "bytes_per_second": rate,
        "lower_bound_seconds": bound,
        "ratio": warm / bound,
        "ratio_to_least": warm / lower_bound_seconds(base, least_nbytes, rate),
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


@contextlib.contextmanager
def open_resident(model: Model) -> Any:
    """The resident arm, loaded and warm."""
    with open_arm("resident", model, 0) as arm:
        start_resident(arm)
        yield arm


def start_resident(arm: Arm) -> None:
    """Loads it; its checkpoint leaves the page cache afterwards, so that no other arm finds it there."""
    arm.start()
    arm.wait()
    arm.ask("load")
    arm.ask("run", lead=2)
    arm.ask("drop")


def prepare_all(models: Sequence[Model], arms: Sequence[str]) -> None:
    """Writes checkpoints and offload folders as far as they are missing, in processes of their own."""
    for model in models:
        say(f"{model.title}: preparing files in {model.folder}")
        command = [sys.executable, "-m", "benchmarks.prepare", model.name, "tiny" if model.is_tiny else "full", *arms]
        subprocess.run(command, cwd=REPOSITORY, env=child_environment(), check=True, stderr=subprocess.PIPE)


def forget_state() -> None:
    """Traces and plans of earlier runs may be of another version."""
    shutil.rmtree(state_folder(), ignore_errors=True)
    root().mkdir(parents=True, exist_ok=True)


def describe(cell: dict[str, Any]) -> str:
    """One line about a cell."""
    line = f"{cell['title']} at {cell['budget_percent']} %: {cell['status']}"
    if "ratio" in cell:
        line += (
            f", {1e3 * cell['warm_seconds']:.0f} ms (resident {1e3 * cell['resident_seconds']:.0f}), "
            f"ratio {cell['ratio']:.3f}, stall {1e3 * cell['stall_seconds']:.0f} ms, "
            f"{cell['bytes_per_second'] / 1e9:.2f} GB/s"
        )
        if cell["peak_nbytes"] is not None:
            line += f", peak {100 * cell['peak_nbytes'] / cell['budget_nbytes']:.0f} % of budget"
    elif cell["status"] != "ok":
        line += f" ({cell['arms']['penstock']['reason']})"
    if cell.get("killed_at_cap"):
        line += ", KILLED AT ITS CAP"
    for name, record in cell["arms"].items():
        if name in RIVALS:
            seconds = record["median_seconds"]
            line += f"; {name} {f'{1e3 * seconds:.0f} ms' if seconds is not None else record['status']}"
            line += " uncapped, killed at its cap" if record["killed_at_cap"] else ""
    return line


def say(text: str) -> None:
    """A line on standard error, where progress goes."""
    print(text, file=sys.stderr, flush=True)


def _percents(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def run() -> None:
    """The command; a resident arm that fails ends it with one line."""
    try:
        app()
    except ArmError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run()
