"""Strategies compared: each model inside each budget, planned in every way that there is, beside the resident model.

As in `run`, arms are processes that take turns, each in a memory cgroup that holds it to the budget. The default
strategy is the reference: where memory does not hold all arms of a cell together, they run in groups, and it runs with
each. Gaps are to what no plan can beat: the *predicted* one with the times that the plan was made with, the *measured*
one with the resident latency and the storage bandwidth of the same run.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import results
from benchmarks.arm import Arm, ArmError, open_arm
from benchmarks.cell import Cell, Record, Turn, bandwidth, open_cell
from benchmarks.model import Model
from benchmarks.models import MODELS, find
from benchmarks.run import forget_state, open_resident, prepare_all, say
from penstock.planning.strategies.registry import get, names

TURN = Turn(lead=2, timed=3)
REPEATS = 9
BUDGETS = "10,20,30,50"
QUICK_MODELS, QUICK_BUDGETS = "resnet152,vit-large,bert-large", "20,50"
REFERENCE = get("auto").name
SOLVERS = {"flashmem": "ortools"}
"""Strategies that need a package which need not be there."""

MOST_TRIES, GROWTH = 4, 1.1  # of a first process, which has measured nothing and asks for more

MEMORY_SHARE = 0.6
"""Of the memory that is available, the arms of one group may have as much as budgets."""

_DEFAULT_OUT = results.FOLDER / "strategies.json"


def main(
    models: Annotated[str, typer.Option(help="Comma-separated names.")] = ",".join(MODELS),
    budgets: Annotated[str, typer.Option(help="Per cent of the weights.")] = BUDGETS,
    strategies: Annotated[str, typer.Option(help="Comma-separated names.")] = ",".join(names()),
    repeats: Annotated[int, typer.Option(min=1, help=f"Passes of each arm; {REPEATS} for results.")] = REPEATS,
    out: Annotated[Path, typer.Option(help="The results file.")] = _DEFAULT_OUT,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the results file: only what it lacks.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_MODELS} at {QUICK_BUDGETS} %, 3 passes.")] = False,
    tiny: Annotated[bool, typer.Option(help="Tiny twins of the models: only to see that all works.")] = False,
) -> None:
    """Measure every strategy."""
    if quick:
        models, budgets, repeats = QUICK_MODELS, QUICK_BUDGETS, TURN.timed
    chosen = [find(name, tiny=tiny) for name in models.split(",")]
    percents = sorted((float(part) for part in budgets.split(",")), reverse=True)
    settings = {"repeats": -(-repeats // TURN.timed) * TURN.timed, "reference": REFERENCE, "tiny": tiny}
    everything: dict[str, Any] = {**results.envelope("strategies", settings), "cells": []}
    if resume:
        everything["cells"] = results.cells_so_far(out, everything)
    prepare_all(chosen, [])
    for model in chosen:
        done = {(cell["model"], cell["budget_percent"]) for cell in everything["cells"]}
        missing = [percent for percent in percents if (model.name, percent) not in done]
        for cell in measure_model(model, missing, strategies.split(","), repeats):
            everything["cells"].append(cell)
            results.write(out, everything)
    say(f"wrote {out}")


def measure_model(model: Model, percents: Sequence[float], strategies: Sequence[str], repeats: int) -> Iterator[Record]:
    """The cells of one model, the largest budget first. What was too large for one is not tried in a smaller one."""
    if not percents:
        return
    weights_nbytes = model.weights_nbytes()
    known = {name: reason for name in strategies if (reason := lacking(name)) is not None}
    with open_resident(model) as resident:
        for percent in percents:
            began = time.monotonic()
            budget_nbytes = int(weights_nbytes * percent / 100)
            wanted = [name for name in strategies if name not in known]
            base, measured = measure_cell(model, budget_nbytes, wanted, resident, repeats)
            known |= {name: record for name, record in measured.items() if record["status"] == "infeasible"}
            cell = {
                "model": model.name,
                "title": model.title,
                "weights_nbytes": weights_nbytes,
                "budget_percent": percent,
                "budget_nbytes": budget_nbytes,
                "resident_seconds": base,
                "strategies": {name: {**measured, **known}[name] for name in strategies},
            }
            say(f"{describe(cell)}\n  [{time.monotonic() - began:.0f} s]")
            yield cell


def lacking(strategy: str) -> Record | None:
    """The record of a strategy that cannot plan here, if it cannot."""
    package = SOLVERS.get(strategy)
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return {"status": "unavailable", "reason": f"{package} is not installed", "needed_nbytes": None}


def measure_cell(
    model: Model, budget_nbytes: int, strategies: Sequence[str], resident: Arm, repeats: int
) -> tuple[float | None, dict[str, Record]]:
    """The resident latency, and the record of each strategy; the reference's is of the first group."""
    base: float | None = None
    records: dict[str, Record] = {}
    leave_trace(model, budget_nbytes)
    for group in group_by_memory(strategies, budget_nbytes, available_nbytes()):
        with open_cell(model, budget_nbytes, group, resident) as cell:
            cell.take_turns(-(-repeats // TURN.timed), TURN)
            found = cell.records()
            seconds = found.pop("resident")["median_seconds"]
            for name, record in found.items():
                if record["status"] == "ok":
                    record |= _derived(cell, name, record, seconds)
                    record["reference_seconds"] = found[REFERENCE]["seconds"] if REFERENCE in found else []
        base, records = base or seconds, {**found, **records}
    return base, records


def leave_trace(model: Model, budget_nbytes: int) -> None:
    """What an earlier process with this budget, or more if it takes more, leaves behind: measured times and memory."""
    forget_state()
    for _ in range(MOST_TRIES):
        with open_arm("penstock", model, budget_nbytes, capped=False) as arm:
            try:
                arm.start()
                arm.wait()
                arm.ask("load")
                arm.ask("settle")
            except ArmError as error:
                if error.needed_nbytes is None:
                    raise
                budget_nbytes = int(GROWTH * max(error.needed_nbytes, budget_nbytes))
            else:
                return


def _derived(cell: Cell, name: str, record: Record, resident_seconds: float) -> Record:
    """What the plan says, and what follows from what was measured."""
    warm, rate = record["median_seconds"], bandwidth(record)
    alongside = cell.ask(name, "predict", bytes_per_second=rate, compute_seconds=resident_seconds)
    return {
        **cell.ask(name, "plan"),
        "bytes_per_second": rate,
        "overhead": warm / resident_seconds - 1,
        "measured_bound_seconds": alongside["bound_seconds"],
        "measured_gap": warm / alongside["bound_seconds"] - 1,
    }


def group_by_memory(strategies: Sequence[str], budget_nbytes: int, memory_nbytes: int) -> list[list[str]]:
    """Strategies that run beside one another in so much memory, two at least; the reference is in every group."""
    first = [name for name in strategies if name == REFERENCE]
    others = [name for name in strategies if name != REFERENCE]
    room = max(1, memory_nbytes // max(budget_nbytes, 1) - len(first))
    groups = [[*first, *others[begin : begin + room]] for begin in range(0, len(others), room)]
    return groups or ([first] if first else [])


def available_nbytes() -> int:
    """The part of the memory that budgets may take together."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(MEMORY_SHARE * 1024 * int(fields["MemAvailable"].split()[0]))


def describe(cell: Record) -> str:
    """A line about a cell, and one about each strategy."""
    base = cell["resident_seconds"]
    lines = [f"{cell['title']} at {cell['budget_percent']:.1f} %" + (f", resident {1e3 * base:.0f} ms" if base else "")]
    for name, record in cell["strategies"].items():
        if record["status"] != "ok":
            lines.append(f"  {name}: {record['status']} ({record['reason']})")
            continue
        lines.append(
            f"  {name}: {1e3 * record['median_seconds']:.0f} ms, predicted {1e3 * record['predicted_seconds']:.0f}, "
            f"gap {100 * record['gap']:.1f} % predicted, {100 * record['measured_gap']:.1f} % measured, planned in "
            f"{record['planning_seconds']:.2f} s" + (", KILLED AT ITS CAP" if record["killed_at_cap"] else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
