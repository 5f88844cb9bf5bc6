"""Small training loops whose activations are large enough to leave memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

WIDTH, ROWS, LAYERS = 64, 8192, 6  # activations of 2 MiB


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
