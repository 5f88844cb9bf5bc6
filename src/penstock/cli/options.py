"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.budget import parse_size
from penstock.errors import BudgetError
from penstock.planning.strategies import names as strategy_names

# Click's, or typer's own copy of it, depending on typer's version.
UsageError: Any = typer.BadParameter.__mro__[1]


def parse_budget(text: str) -> int:
    """Bytes of a `--budget`."""
    try:
        return parse_size(text)
    except BudgetError as error:
        raise typer.BadParameter(str(error)) from error


def check_writable(option: str, file: Path | None) -> None:
    """Refuses an output file whose folder cannot be written to, before anything runs for it."""
    if file is not None and (not file.parent.is_dir() or not os.access(file.parent, os.W_OK)):
        raise UsageError(f"{option} {file}: {file.parent} is not a folder that can be written to")


Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A local folder in the Hub's layout: config.json and safetensors weights."),
]
Budget = Annotated[
    int,
    typer.Option(
        "--budget", metavar="SIZE", parser=parse_budget, help="Cap on all memory of the model: 512MiB, 2GB, or bytes."
    ),
]
Budgets = Annotated[
    list[int],
    typer.Option(
        "--budget", metavar="SIZE", parser=parse_budget, help="Cap on all memory of the model; may be repeated."
    ),
]
_HOW = f"How to choose what stays and what streams: auto, {', '.join(strategy_names())}."
BudgetOrSweep = Annotated[
    int | None,
    typer.Option(
        "--budget", metavar="SIZE", parser=parse_budget, help="Cap on all memory of the model: 512MiB, 2GB, or bytes."
    ),
]
Strategies = Annotated[
    list[str] | None,
    typer.Option("--strategy", help=f"{_HOW} With --sweep, may be repeated."),
]
Timeline = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write what happens when, as a trace for ui.perfetto.dev or chrome://tracing."),
]
Strategy = Annotated[str, typer.Option(help=_HOW)]
MaxOverhead = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Take as little memory as lets a pass be this much slower: 0.01 for 1 %."),
]
LeastMemory = Annotated[bool, typer.Option("--least-memory", help="Take as little memory as the strategy can.")]
Exact = Annotated[
    bool, typer.Option("--exact", help="Compute no layer in slices, so that every bit is the resident model's.")
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Safetensors file with the forward's arguments by name, instead of made-up ones."
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Rows of made-up inputs.")]
Tokens = Annotated[int, typer.Option(min=1, help="Length of a row of made-up inputs, for models that read text.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text, and no progress.")]
