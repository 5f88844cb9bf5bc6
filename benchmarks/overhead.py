"""Hooks and bookkeeping: Penstock against the resident model in one process, pass by pass.

Two budgets: 100 % of the weights, where what activations need is streamed; and ample, where nothing is. Both models are
in memory, and the passes alternate in changing order; the number is the median of the ratios of neighbours.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import results
from benchmarks.apart import run_apart
from benchmarks.models import RUN, find
from benchmarks.run import forget_state, prepare_all, say
from benchmarks.session import Session
from benchmarks.ways import WAYS
from penstock.errors import BudgetInfeasibleError

AMPLE_NBYTES = 2**30
WARM_UP_PASSES = 4
_DEFAULT_OUT = results.FOLDER / "overhead.json"


def main(
    models: Annotated[str, typer.Option(help="Comma-separated names.")] = ",".join(RUN),
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of passes; 21 for results.")] = 21,
    out: Annotated[Path, typer.Option(help="The results file.")] = _DEFAULT_OUT,
    tiny: Annotated[bool, typer.Option(help="Tiny twins of the models: only to see that all works.")] = False,
) -> None:
    """Measure what hooks and bookkeeping cost."""
    chosen = [find(name, tiny=tiny) for name in models.split(",")]
    everything = {**results.envelope("overhead", {"repeats": repeats, "tiny": tiny}), "cells": []}
    prepare_all(chosen, [])
    forget_state()
    for model in chosen:
        for case in ("100 %", "ample"):
            cell = run_apart(measure, model.name, case, repeats, tiny)
            everything["cells"].append({"model": model.name, "title": model.title, "case": case, **cell})
            results.write(out, everything)
            say(describe(everything["cells"][-1]))
    say(f"wrote {out}")


def measure(name: str, case: str, repeats: int, tiny: bool) -> dict[str, Any]:
    """The pairs of one model and budget. Runs in a process of its own."""
    model = find(name, tiny=tiny)
    budget_nbytes = model.weights_nbytes() + (AMPLE_NBYTES if case == "ample" else 0)
    plain = Session(WAYS["resident"], model, 0)
    streamed = Session(WAYS["penstock"], model, budget_nbytes)
    try:
        for session in (plain, streamed):
            session.load()
            for _ in range(WARM_UP_PASSES - 1):
                session.run(lead=0)
    except BudgetInfeasibleError as error:
        return {"status": "infeasible", "reason": str(error), "needed_nbytes": error.needed_nbytes}
    return {"status": "ok", "budget_nbytes": budget_nbytes, **_compare(plain, streamed, repeats)}


def _compare(plain: Session, streamed: Session, repeats: int) -> dict[str, Any]:
    # Where bytes are streamed a pass has to follow another, or the arena is full when it begins.
    lead = 1 if streamed.run(lead=0)["bytes_streamed"] else 0
    pairs = []
    for first, second in _orders(repeats):
        seconds = {}
        for arm in (first, second):
            seconds[arm] = (plain if arm == "resident" else streamed).run(lead=lead)
        pairs.append((seconds["resident"], seconds["penstock"]))
    return {
        "ratio": statistics.median(ours["seconds"] / base["seconds"] for base, ours in pairs),
        "resident_seconds": statistics.median(base["seconds"] for base, _ in pairs),
        "penstock_seconds": statistics.median(ours["seconds"] for _, ours in pairs),
        "stall_seconds": statistics.median(ours["stall_seconds"] for _, ours in pairs),
        "bytes_streamed": statistics.median(ours["bytes_streamed"] for _, ours in pairs),
        "pairs": [[base["seconds"], ours["seconds"]] for base, ours in pairs],
    }


def describe(cell: dict[str, Any]) -> str:
    """One line about a cell."""
    head = f"{cell['title']}, {cell['case']}: "
    if cell["status"] != "ok":
        return head + f"{cell['status']} ({cell['reason']})"
    return head + f"ratio {cell['ratio']:.4f}, {cell['bytes_streamed'] / 1e6:.0f} MB read a pass"


def _orders(repeats: int) -> Iterator[tuple[str, str]]:
    for number in range(repeats):
        yield ("resident", "penstock") if number % 2 else ("penstock", "resident")


if __name__ == "__main__":
    typer.run(main)
