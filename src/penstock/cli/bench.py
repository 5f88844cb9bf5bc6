"""`penstock bench`: streamed against resident, in processes of their own that take turns."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.budget import format_size
from penstock.cli.options import Batch, Budgets, Exact, Inputs, Json, LeastMemory, MaxOverhead, Model, Strategy, Tokens
from penstock.cli.plan import example_for
from penstock.cli.terminal import Terminal, bandwidth, make_table, milliseconds
from penstock.models import open_folder

if TYPE_CHECKING:
    from penstock.arms import ArmResult, ArmSpec
    from penstock.cli.terminal import Report


def bench(
    model: Model,
    budget: Budgets,
    rounds: Annotated[int, typer.Option(min=7, help="Passes of each that count.")] = 7,
    inputs: Inputs = None,
    batch: Batch = 1,
    tokens: Tokens = 128,
    strategy: Strategy = "auto",
    max_overhead: MaxOverhead = None,
    least_memory: LeastMemory = False,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Compare MODEL inside each budget with itself resident: latency, peak memory, same bits or not."""
    from penstock.arms import ArmSpec
    from penstock.machine import measure
    from penstock.tensors import save_tensors

    terminal = Terminal(as_json=as_json)
    folder = open_folder(model)
    cls = folder.load_class()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as scratch, terminal.progress() as report:
        file = Path(scratch) / "inputs.safetensors"
        save_tensors(example_for(folder, inputs, batch, tokens), file)
        storage = measure(model, quick=True, progress=lambda done, total: report("measuring storage", done, total))
        spec = ArmSpec(
            str(folder.path),
            folder.library,
            cls.__name__,
            (str(file),),
            strategy=strategy,
            max_overhead=max_overhead,
            least_memory=least_memory,
            exact=exact,
        )
        cells = _compare(spec, budget, rounds, report)
    headers = ["budget", "peak", "resident", "streamed", "ratio", "stalled", "read per pass", "bit-identical"]
    terminal.show(make_table(headers, [_row(*cell) for cell in cells]))
    terminal.show(f"Storage: {bandwidth(storage.bytes_per_second)}. Latency: medians of {rounds} alternating passes.")
    described = [_described(*cell) for cell in cells]
    terminal.emit({"storage": asdict(storage), "rounds": rounds, "cells": described})
    if not all((cell["bit_identical"] or cell["in_slices"]) and cell["within_budget"] for cell in described):
        raise typer.Exit(1)


Cell = tuple[int, "ArmResult", "ArmResult"]


def _compare(spec: ArmSpec, budgets: list[int], rounds: int, report: Report) -> list[Cell]:
    from penstock.arms import alternate, open_arms

    cells: list[Cell] = []
    report("loading", 0, 0)
    with open_arms([spec]) as (resident,):
        for nbytes in budgets:
            title = f"inside {format_size(nbytes)}"
            with open_arms([dataclasses.replace(spec, budget_nbytes=nbytes)]) as (streamed,):
                plain, budgeted = alternate(
                    [resident, streamed], rounds, lambda *steps, title=title: report(title, *steps)
                )
            cells.append((nbytes, plain, budgeted))
    return cells


def _read_per_pass(streamed: ArmResult) -> float:
    return streamed.stats["bytes_read"] / max(1, streamed.stats["passes"])


def _described(budget_nbytes: int, resident: ArmResult, streamed: ArmResult) -> dict[str, Any]:
    return {
        "budget_nbytes": budget_nbytes,
        "ratio": streamed.median_seconds / resident.median_seconds,
        "bit_identical": resident.outputs_sha256 == streamed.outputs_sha256,
        "in_slices": streamed.stats["sliced_weights"] > 0,
        "within_budget": streamed.peak_nbytes <= budget_nbytes,
        "resident": {**asdict(resident), "median_seconds": resident.median_seconds},
        "streamed": {**asdict(streamed), "median_seconds": streamed.median_seconds},
    }


def _row(budget_nbytes: int, resident: ArmResult, streamed: ArmResult) -> list[str]:
    over = "" if streamed.peak_nbytes <= budget_nbytes else " OVER"
    return [
        format_size(budget_nbytes),
        f"{format_size(streamed.peak_nbytes)}{over}",
        milliseconds(resident.median_seconds),
        milliseconds(streamed.median_seconds),
        f"{streamed.median_seconds / resident.median_seconds:.2f}",
        milliseconds(streamed.stats["stall_seconds"] / max(1, streamed.stats["passes"])),
        format_size(_read_per_pass(streamed)),
        _identical(resident, streamed),
    ]


def _identical(resident: ArmResult, streamed: ArmResult) -> str:
    if resident.outputs_sha256 == streamed.outputs_sha256:
        return "yes"
    return "no, in slices" if streamed.stats["sliced_weights"] else "no"
