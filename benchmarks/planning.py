"""Planning alone: how long each strategy plans, and how far from the best possible its plan is. Nothing is loaded.

Traces are of dry runs, so layers' times are estimates; storage is as measured here. Weights need not be there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import results
from benchmarks.apart import run_apart
from benchmarks.model import Model
from benchmarks.models import LLAMA_70B, LLAMA_70B_TOKEN, find
from benchmarks.problems import trace_without_weights
from benchmarks.run import say
from benchmarks.strategies import REFERENCE, lacking
from penstock.errors import BudgetInfeasibleError
from penstock.planning import Problem, make_plan
from penstock.planning.strategies.registry import names

LONG_SECONDS = 5.0  # what takes longer is not done again
_DEFAULT_OUT = results.FOLDER / "planning.json"


def main(
    budgets: Annotated[str, typer.Option(help="Per cent of the weights.")] = "10,20,30,50",
    strategies: Annotated[str, typer.Option(help="Comma-separated names.")] = ",".join(names()),
    repeats: Annotated[int, typer.Option(min=1, help=f"Of each plan that takes less than {LONG_SECONDS:g} s.")] = 3,
    out: Annotated[Path, typer.Option(help="The results file.")] = _DEFAULT_OUT,
    tiny: Annotated[bool, typer.Option(help="Tiny twins of the models: only to see that all works.")] = False,
) -> None:
    """Measure planning."""
    everything = {
        **results.envelope("planning", {"repeats": repeats, "reference": REFERENCE, "tiny": tiny}),
        "cells": [],
    }
    percents = [int(part) for part in budgets.split(",")]
    for model in (find("resnet152"), LLAMA_70B, LLAMA_70B_TOKEN):
        chosen = model.small() if tiny else model
        everything["cells"] += run_apart(measure, chosen, percents, strategies.split(","), repeats)
        results.write(out, everything)
    say(f"wrote {out}")


def measure(model: Model, percents: Sequence[int], strategies: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """The cells of one model. Runs in a process of its own."""
    began = time.perf_counter()
    workload = trace_without_weights(model)
    trace_seconds = time.perf_counter() - began
    weights_nbytes = sum(weight.source.nbytes for weight in workload.weights)
    cells = []
    for percent in percents:
        problem = workload.problem(weights_nbytes * percent // 100)
        cells.append(
            {
                "model": model.name,
                "title": model.title,
                "calls": len(problem.calls),
                "weights": len(problem.weights),
                "weights_nbytes": weights_nbytes,
                "trace_seconds": trace_seconds,
                "bytes_per_second": problem.storage.bytes_per_second,
                "budget_percent": percent,
                "budget_nbytes": problem.budget_nbytes,
                "strategies": {name: plan(problem, name, repeats) for name in strategies},
            }
        )
        say(describe(cells[-1]))
    return cells


def plan(problem: Problem, strategy: str, repeats: int) -> dict[str, Any]:
    """How long `strategy` plans, and what comes of it."""
    if (record := lacking(strategy)) is not None:
        return record
    seconds: list[float] = []
    try:
        while len(seconds) < repeats and (not seconds or seconds[0] < LONG_SECONDS):
            began = time.perf_counter()
            made = make_plan(problem, strategy)
            seconds.append(time.perf_counter() - began)
    except BudgetInfeasibleError as error:
        return {"status": "infeasible", "needed_nbytes": error.needed_nbytes}
    prediction = made.prediction
    return {
        "status": "ok",
        "seconds": seconds,
        "planning_seconds": statistics.median(seconds),
        "predicted_seconds": prediction.warm_seconds,
        "bound_seconds": prediction.lower_bound_seconds,
        "gap": prediction.gap,
        "details": dict(made.details),
    }


def describe(cell: dict[str, Any]) -> str:
    """One line about a cell."""
    parts = []
    for name, record in cell["strategies"].items():
        if record["status"] == "ok":
            parts.append(f"{name} {record['planning_seconds']:.2f} s (gap {100 * record['gap']:.1f} %)")
        else:
            parts.append(f"{name} {record['status']}")
    return f"{cell['title']} at {cell['budget_percent']} %: {', '.join(parts)}"


if __name__ == "__main__":
    typer.run(main)
