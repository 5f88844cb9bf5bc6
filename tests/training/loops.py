"""Small training loops whose activations are large enough to leave memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

import penstock
from penstock.planning.swap_problem import Link
from penstock.training.autoswap import AutoSwap

WIDTH, ROWS, LAYERS = 64, 8192, 6  # activations of 2 MiB
MIB = 1 << 20
BUDGET = 36 * MIB


class Tower(nn.Module):
    """Layers that save what they get and what they give."""

    def __init__(self, layers: int = LAYERS, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.nn.functional.gelu(layer(x)) + x
        return self.norm(x)


def make(seed: int = 0, *, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD) -> tuple[Any, Any]:
    """A tower and its optimizer, the same each time."""
    torch.manual_seed(seed)
    model = Tower()
    return model, optimizer(model.parameters(), lr=1e-2)


def batches(count: int, rows: int = ROWS) -> Iterable[torch.Tensor]:
    """The same each time."""
    chance = torch.Generator().manual_seed(7)
    for _ in range(count):
        yield torch.randn(rows, WIDTH, generator=chance)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    """An ordinary step; its loss."""
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Iterable[torch.Tensor],
    within: contextlib.AbstractContextManager[Any] | None = None,
    one: Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], float] = step,
) -> list[float]:
    """Losses of a step for each of `inputs`."""
    with within if within is not None else contextlib.nullcontext():
        return [one(model, optimizer, x) for x in inputs]


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules have the same parameters and gradients, to the last bit."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(
        torch.equal(a, b) and ((a.grad is None) == (b.grad is None)) and (a.grad is None or torch.equal(a.grad, b.grad))
        for a, b in pairs
    )


def swap(model: nn.Module, optimizer: Any, **more: Any) -> AutoSwap:
    """A block around a loop."""
    return penstock.autoswap(model, optimizer, budget=more.pop("budget", BUDGET), **more)


def both(
    one: Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], float] = step,
    steps: int = 8,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    **more: Any,
) -> AutoSwap:
    """Train plainly and within the budget, compare, and tell what happened."""
    plain, plainly = make(optimizer=optimizer)
    expected = train(plain, plainly, batches(steps), one=one)
    model, its = make(optimizer=optimizer)
    within = swap(model, its, **more)
    assert train(model, its, batches(steps), within, one=one) == expected
    assert same(plain, model)
    return within


def least_nbytes(one: Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], float]) -> int:
    """What no budget may be below, if nothing that may leave is held by somebody else."""
    iteration = both(one, budget="1GiB").iteration
    assert iteration is not None
    link = Link(0.0, 1e9)
    return iteration.problem(link, link, 1).least_nbytes()


def tightly(one: Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], float]) -> None:
    """Compare within the least budget, where all leaves that may."""
    within = both(one, budget=least_nbytes(one) + MIB)
    assert within.plan is not None
    assert within.plan.swaps
    assert within.stats.iterations >= 4


def failing(*_: Any) -> int:
    """What the system does where a disk fails."""
    raise OSError(5, os.strerror(5))
