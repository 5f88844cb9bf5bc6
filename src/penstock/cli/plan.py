"""`penstock plan`: what would be resident, what would stream when, and how fast that would be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from penstock.cli.options import Batch, Budget, Inputs, Json, LeastMemory, MaxOverhead, Model, Strategy, Tokens
from penstock.cli.run import refusals, streamed
from penstock.cli.terminal import Terminal
from penstock.models import ModelFolder, open_folder

if TYPE_CHECKING:
    import torch


def plan(
    model: Model,
    budget: Budget,
    inputs: Inputs = None,
    batch: Batch = 1,
    tokens: Tokens = 128,
    strategy: Strategy = "auto",
    max_overhead: MaxOverhead = None,
    least_memory: LeastMemory = False,
    as_json: Json = False,
) -> None:
    """Show how MODEL would run inside a budget, or the smallest budget in which it can."""
    import penstock

    terminal = Terminal(as_json=as_json)
    folder = open_folder(model)
    cls = folder.load_class()
    example = example_for(folder, inputs, batch, tokens)
    with terminal.progress() as report, refusals(f"{cls.__name__} refuses these inputs"):
        report("planning", 0, 0)
        how = {"strategy": strategy, "max_overhead": max_overhead, "least_memory": least_memory}
        with streamed(cls, folder.path, budget=budget, example=example, **how) as module:
            found = penstock.inspect(module).plan
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
