"""`penstock plan`: what would be resident, what would stream when, and how fast that would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.options import (
    Batch,
    BudgetOrSweep,
    Exact,
    Inputs,
    Json,
    LeastMemory,
    MaxOverhead,
    Model,
    Strategies,
    Timeline,
    Tokens,
    UsageError,
    check_writable,
)
from penstock.cli.run import refusals, streamed
from penstock.cli.sweep import check_drawings, show_sweep
from penstock.cli.terminal import Terminal
from penstock.models import ModelFolder, open_folder

if TYPE_CHECKING:
    import torch


def plan(
    model: Model,
    budget: BudgetOrSweep = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Instead of one budget: all that make sense.")] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --sweep: draw it as FILE.png or FILE.svg.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --sweep: draw it as an interactive page, FILE.html.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --sweep: also run it, in a handful of the budgets.")
    ] = False,
    timeline: Timeline = None,
    inputs: Inputs = None,
    batch: Batch = 1,
    tokens: Tokens = 128,
    strategy: Strategies = None,
    max_overhead: MaxOverhead = None,
    least_memory: LeastMemory = False,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Show how MODEL would run inside a budget, or the smallest budget in which it can; or, with --sweep, in all."""
    _check_options(
        budget,
        sweep,
        strategy or [],
        {"--picture": picture, "--page": page, "--measure": measure},
        {"--timeline": timeline, "--max-overhead": max_overhead, "--least-memory": least_memory, "--exact": exact},
    )
    terminal = Terminal(as_json=as_json)
    check_drawings(picture, page)
    check_writable("--timeline", timeline)
    folder = open_folder(model)
    cls = folder.load_class()
    example = example_for(folder, inputs, batch, tokens)
    with refusals(f"{cls.__name__} refuses these inputs"):
        if budget is not None:
            how = {
                "strategy": (strategy or ["auto"])[0],
                "max_overhead": max_overhead,
                "least_memory": least_memory,
                "exact": exact,
            }
            _show(terminal, folder, cls, example, budget, how, timeline)
        else:
            show_sweep(
                terminal,
                folder,
                cls,
                example,
                strategies=strategy or None,
                measures=measure,
                picture=picture,
                page=page,
            )


def _check_options(
    budget: int | None,
    sweep: bool,
    strategies: list[str],
    of_sweep: dict[str, object],
    of_budget: dict[str, object],
) -> None:
    if sweep and budget is not None:
        raise UsageError("--sweep shows every budget: leave --budget out")
    if not sweep and budget is None:
        raise UsageError("Missing option '--budget' (or --sweep, to see what each would bring)")
    for name, given in of_budget.items():
        if sweep and given not in (None, False):
            raise UsageError(f"{name} is of one budget: give --budget instead of --sweep")
    for name, given in of_sweep.items():
        if given and not sweep:
            raise UsageError(f"{name} goes with --sweep, not with --budget")
    if not sweep and len(strategies) > 1:
        raise UsageError("--strategy may be repeated with --sweep only")


def _show(
    terminal: Terminal,
    folder: ModelFolder,
    cls: Any,
    example: Any,
    budget: int,
    how: dict[str, Any],
    timeline: Path | None,
) -> None:
    import penstock

    with terminal.progress() as report:
        report("planning", 0, 0)
        with streamed(cls, folder.path, budget=budget, example=example, **how) as module:
            stream = penstock.inspect(module)
            found = stream.plan
            if timeline is not None:
                stream.predicted().save(timeline)
    terminal.show(found.explain())
    terminal.emit(json.loads(found.to_json()))


def example_for(folder: ModelFolder, inputs: Any, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """The inputs in a file, or made-up ones."""
    from penstock.examples import example_inputs
    from penstock.tensors import load_tensors

    if inputs is not None:
        return load_tensors(inputs)
    if folder.library != "transformers":
        return example_inputs(folder.load_class(), None)
    return example_inputs(folder.load_class(), folder.load_config(), batch=batch, tokens=tokens)
