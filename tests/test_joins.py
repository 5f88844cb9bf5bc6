"""Weights that come together: each layer computes with its own bytes, whatever order layers are called in."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from penstock.planning import Plan, Problem
from penstock.planning.joining import Join, join
from penstock.planning.lifetimes import needed_nbytes as least_nbytes
from penstock.planning.strategies import get
from penstock.planning.strategies.grouping import list_joins

from .adversary import AdversarialDevice
from .streaming import counted_memory, equal, plan_of, weight_nbytes
from .test_any_order import build, outputs
from .zoo import CASES

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")
JOINABLE = [name for name in CASES if "by value" not in name and "itself" not in name]


class _Together:
    """Joins all that can be, and plans for that."""

    name = "together"

    def needed_nbytes(self, problem: Problem) -> int:
        return least_nbytes(join(problem, _joins(problem)).problem, sliced=False)

    def plan(self, problem: Problem) -> Plan:
        joins = _joins(problem)
        return replace(get("auto").plan(join(problem, joins).problem), joins=joins)


def _joins(problem: Problem) -> tuple[Join, ...]:
    return next(list_joins(problem), ())


@pytest.fixture(autouse=True)
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(penstock.planning.strategies.registry._STRATEGIES, "together", _Together())
        yield


def stream_together(module: nn.Module, *calls: tuple[Any, ...], share: float = 0.05, **kwargs: Any) -> Plan:
    """Stream `module` with joins, within the least that `calls` need then and a `share` of its weights."""
    needs = []
    for call in calls:
        with pytest.raises(penstock.BudgetInfeasibleError) as refusal:
            penstock.stream(copy.deepcopy(module), budget=1, example=call, strategy="together")
        needs.append(refusal.value.needed_nbytes)
    budget = max(needs) + int(share * weight_nbytes(module))
    penstock.stream(module, budget=budget, example=calls[0], strategy="together", **kwargs)
    return plan_of(module)


@pytest.mark.parametrize("name", JOINABLE)
def test_joined_is_bit_identical_to_resident(name: str) -> None:
    case = CASES[name]
    expected = outputs(build(case), case)
    module = build(case)

    stream_together(module, *case.calls, device=AdversarialDevice(seed=len(name)))
    found = outputs(module, case)
    penstock.restore(module)
    assert [equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(expected)


class Convolutions(nn.Module):
    """Blocks of three small convolutions, in the order of their names in a checkpoint or not."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 1))
            for _ in range(24)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def _convolutions() -> Convolutions:
    torch.manual_seed(0)
    return Convolutions().eval()


def test_layers_whose_weights_come_together_are_the_models_own_pass_after_pass() -> None:
    given = torch.randn(2, 64, 20, 20)
    module = _convolutions()
    plan = stream_together(module, (given,), device=AdversarialDevice(3))
    assert plan.joins
    assert any(".." in plan.weight_names[load.weight] for load in plan.loads)
    with torch.inference_mode():
        expected = _convolutions()(given)
        assert all(torch.equal(module(given), expected) for _ in range(4))
    penstock.restore(module)


def test_a_joined_weight_that_is_read_without_its_layer_is_there() -> None:
    module = _convolutions()
    stream_together(module, (torch.randn(1, 64, 20, 20),), device=AdversarialDevice(4))
    expected = _convolutions().blocks[5][0].weight.sum()
    with torch.inference_mode():
        module(torch.randn(1, 64, 20, 20))
        weight = module.blocks[5][0].weight
        with pytest.raises(RuntimeError):
            weight.data.sum()
    assert torch.equal(penstock.restore(module).blocks[5][0].weight.sum(), expected)


def test_explain_tells_what_comes_together() -> None:
    module = _convolutions()
    plan = stream_together(module, (torch.randn(1, 64, 20, 20),))
    count = sum(len(item.weights) for item in plan.joins)
    assert f"{count} weights in {len(plan.joins)} joins" in " ".join(plan.explain().split())
    penstock.restore(module)
