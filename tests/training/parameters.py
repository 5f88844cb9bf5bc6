"""Loops whose weights and gradients may leave memory."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from tests.training.loops import Tower, same, step, train
from torch import nn

import penstock
from penstock.planning.swap_problem import Link
from penstock.training.autoswap import AutoSwap

WIDTH, MIB, STEPS = 768, 1 << 20, 9
One = Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], float]
FAST = Link(1e-5, 1e11)  # whatever helps is worth it


def make(momentum: float = 0.9) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Parameters of 13 MiB, gradients, and state."""
    torch.manual_seed(0)
    model = Tower(layers=6, width=WIDTH)
    return model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=momentum)


def inputs(count: int = STEPS, rows: int = 64) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(3)
    return [torch.randn(rows, WIDTH, generator=chance) for _ in range(count)]


def moved(swap: AutoSwap, kind: type) -> int:
    """How many of a kind the plan has leave."""
    assert swap.plan is not None
    assert swap.planner is not None
    found = {swap_.storage: swap.planner.movables.get(swap_.storage) for swap_ in swap.plan.swaps}
    return sum(isinstance(movable, kind) for movable in found.values())


def gone(model: nn.Module) -> int:
    return sum(parameter.is_meta for parameter in model.parameters())


def assert_same(
    budget: int, one: One = step, momentum: float = 0.9, batches: list[torch.Tensor] | None = None, departed: int = 0
) -> AutoSwap:
    """Training with and without is the same to the last bit."""
    batches = inputs() if batches is None else batches
    plain, plainly = make(momentum)
    expected = train(plain, plainly, batches, one=one)
    model, optimizer = make(momentum)
    within = penstock.autoswap(model, optimizer, budget=budget, parameters=True)
    assert train(model, optimizer, batches, within, one=one) == expected
    assert same(plain, model)
    for first, second in zip(plainly.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first if first[name] is not None)
    assert not gone(model)
    assert within.stats.departed == departed
    return within


@functools.cache
def least(
    one: One = step,
    made: Callable[[], tuple[nn.Module, torch.optim.Optimizer]] = make,
    batches: tuple[torch.Tensor, ...] | None = None,
) -> int:
    """The smallest budget in which a loop trains, as a smaller one is refused."""
    model, optimizer = made()
    with (
        pytest.raises(penstock.BudgetInfeasibleError, match="set one of") as caught,
        penstock.autoswap(model, optimizer, budget=MIB, parameters=True),
    ):
        train(model, optimizer, inputs() if batches is None else batches, one=one)
    assert not gone(model)
    assert caught.value.needed_nbytes is not None
    return caught.value.needed_nbytes


def now_and_then(what: Callable[[nn.Module, torch.optim.Optimizer], object]) -> One:
    """Does something after the eighth step only, when all is planned for."""
    steps: dict[int, int] = {}

    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        loss = step(model, optimizer, x)
        steps[id(model)] = steps.get(id(model), 0) + 1
        if steps[id(model)] == 8:
            what(model, optimizer)
        return loss

    return one


def evaluate_once(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        assert torch.isfinite(model(inputs(1)[0])).all()
