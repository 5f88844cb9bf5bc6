"""Every strategy's plans run for real: on a device that delays, reorders and poisons, each gives the resident bits."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from penstock.planning.strategies import names

from .adversary import AdversarialDevice
from .streaming import counted_memory, equal, plan_of, weight_nbytes
from .zoo import CASES, Block, Case, X

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")
STAGED = {"sequential", "synchronous", "asynchronous"}
needs_solver = pytest.mark.skipif(
    importlib.util.find_spec("ortools") is None, reason="the solver extra is not installed: pip install '.[solver]'"
)
STRATEGIES = [pytest.param(name, marks=needs_solver if name == "flashmem" else ()) for name in names()]
NAMES = (
    *("shared blocks", "tied table and head", "branches", "branches by value", "early exit", "other shapes"),
    *("a layer that calls itself", "weights around children", "one weight in two places, nested"),
    *("attention", "transformer encoder", "weights of others"),
)


def stream_by(strategy: str, module: nn.Module, case: Case, share: float, device: AdversarialDevice) -> None:
    """Stream `module` within what its calls need at least and a `share` of its weights."""
    needs = []
    for call in case.calls:
        with pytest.raises(penstock.BudgetInfeasibleError) as refusal:
            penstock.stream(copy.deepcopy(module), budget=1, example=call, strategy=strategy)
        needs.append(refusal.value.needed_nbytes)
    budget = max(needs) + int(share * weight_nbytes(module))
    penstock.stream(module, budget=budget, example=case.calls[0], strategy=strategy, device=device)


def outputs(module: nn.Module, case: Case) -> list[Any]:
    torch.manual_seed(7)
    with torch.inference_mode():
        return [copy.deepcopy(module(*call)) for call in case.calls]


def build(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.build()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_streamed_is_as_resident(strategy: str, name: str) -> None:
    case = CASES[name]
    expected = outputs(build(case), case)
    module = build(case)
    share = 6.0 if "by value" in name or "itself" in name else 0.05  # what no dry run can follow is planned for blindly
    stream_by(strategy, module, case, share, AdversarialDevice(seed=len(name)))
    is_sliced = bool(plan_of(module).cuts)
    found = outputs(module, case)
    assert plan_of(module).strategy == strategy
    is_sliced |= bool(plan_of(module).cuts)
    penstock.restore(module)
    if is_sliced:
        torch.testing.assert_close(found, expected)
    else:
        assert [equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_in_the_planned_order_nothing_is_loaded_on_demand(strategy: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*[Block() for _ in range(6)])
    case = Case(lambda: module, ((X,),))
    expected = outputs(module, case)
    device = AdversarialDevice(seed=1)
    stream_by(strategy, module, case, 0.05, device)
    for _ in range(4):
        assert equal(outputs(module, case)[0], expected[0])
    plan, stats = plan_of(module), penstock.inspect(module).stats
    assert (plan.staging_nbytes > 0) == (strategy in STAGED)
    assert bool(plan.loads) == (strategy != "preload")
    assert bool(device.freed_nbytes) == bool(plan.loads)
    assert stats.demand_loads == 0
    penstock.restore(module)
