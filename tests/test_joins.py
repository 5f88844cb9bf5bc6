"""Weights that come together: each layer computes with its own bytes, whatever order layers are called in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from penstock.planning import Plan, Problem
from penstock.planning.joining import JOINER, Join, join
from penstock.planning.lifetimes import needed_nbytes as least_nbytes
from penstock.planning.strategies import get
from penstock.planning.strategies.grouping import list_joins

from .adversary import AdversarialDevice
from .streaming import counted_memory, equal, plan_of, stream_tightly
from .test_any_order import build, outputs
from .zoo import CASES

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")
ALL_RESIDENT = {"tied parameters", "containers"}
"""Within a share of what joined layers need at least, all of their weights fit."""
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
    """All that can be, in pairs, so that small models still stream."""
    found = next(list_joins(problem), ())
    pairs = (item.weights[begin : begin + 2] for item in found for begin in range(0, len(item.weights), 2))
    return tuple(Join(pair) for pair in pairs if len(pair) == 2)


@pytest.fixture(autouse=True)
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(penstock.planning.strategies.registry._STRATEGIES, "together", _Together())
        yield


def stream_together(module: nn.Module, *calls: tuple[Any, ...], **kwargs: Any) -> Plan:
    """Stream `module` with joins, within the least that `calls` need then and a twentieth of its weights."""
    stream_tightly(module, *calls, share=0.05, strategy="together", **kwargs)
    return plan_of(module)


@pytest.mark.parametrize("name", JOINABLE)
def test_joined_is_bit_identical_to_resident(name: str) -> None:
    case = CASES[name]
    expected = outputs(build(case), case)
    module, device = build(case), AdversarialDevice(seed=len(name))
    stream_together(module, *case.calls, device=device)
    found = outputs(module, case)
    penstock.restore(module)
    assert device.freed_nbytes or name in ALL_RESIDENT
    assert [equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(expected)


class Convolutions(nn.Module):
    """Blocks with one convolution each that is worth joining. One that borrows uses each a block too early as well."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 1))
            for _ in range(24)
        )
        self.borrows = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, later in zip(self.blocks, (*self.blocks[1:], self.blocks[0]), strict=True):
            if self.borrows:
                weight = later[0].weight
                x = block(x) + nn.functional.conv2d(x, weight, padding=1)
            else:
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
    assert any(JOINER in plan.weight_names[load.weight] for load in plan.loads)
    with torch.inference_mode():
        expected = _convolutions()(given)
        assert all(torch.equal(module(given), expected) for _ in range(4))
    penstock.restore(module)


def test_a_joined_weight_that_is_taken_up_before_its_layer_stays_readable() -> None:
    given = torch.randn(1, 64, 20, 20)
    resident, module = _convolutions(), _convolutions()
    assert stream_together(module, (given,), device=AdversarialDevice(4)).joins
    with torch.inference_mode():
        assert torch.equal(module(given), resident(given))
        resident.borrows = module.borrows = True
        expected = resident(given)
        assert all(torch.equal(module(given), expected) for _ in range(3))
    penstock.restore(module)


def test_explain_tells_what_comes_together() -> None:
    module = _convolutions()
    plan = stream_together(module, (torch.randn(1, 64, 20, 20),))
    count = sum(len(item.weights) for item in plan.joins)
    assert f"{count} weights in {len(plan.joins)} joins" in " ".join(plan.explain().split())
    penstock.restore(module)
