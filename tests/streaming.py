"""How tests stream small modules so that weights really come and go."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from penstock.planning import Plan

WIDTH = 160
"""A square fp32 weight of this width is larger than what always stays resident."""


@pytest.fixture
def counted_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel that keeps no account of processes: budgets hold what plans count, whatever other tests hold."""
    monkeypatch.setattr("penstock.footprint.read_memory", lambda: None)


def weight_nbytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def needed_nbytes(module: nn.Module, *calls: tuple[Any, ...], strategy: str = "auto") -> int:
    """The smallest budget in which each of `calls` (tuples of arguments) can run."""
    needs = []
    for call in calls:
        with pytest.raises(penstock.BudgetInfeasibleError) as caught:
            penstock.stream(copy.deepcopy(module), budget=1, example=call, strategy=strategy)
        needs.append(caught.value.needed_nbytes)
    return max(needs)


def stream_tightly(
    module: nn.Module,
    *calls: tuple[Any, ...],
    share: float = 0.25,
    plan_now: bool = True,
    strategy: str = "auto",
    **kwargs: Any,
) -> Any:
    """Stream `module` within what `calls` need at least, plus `share` of its weights; plan for the first of them."""
    budget = needed_nbytes(module, *calls, strategy=strategy) + int(share * weight_nbytes(module))
    example = calls[0] if plan_now else None
    return penstock.stream(module, budget=budget, example=example, strategy=strategy, **kwargs)


def plan_of(module: nn.Module) -> Plan:
    return penstock.inspect(module).plan


def is_streaming(module: nn.Module) -> bool:
    """Whether some weights really come and go."""
    return bool(plan_of(module).loads)


def equal(found: Any, expected: Any) -> bool:
    """Whether two results hold the same bits, whatever they are nested in."""
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and found.stride() == expected.stride() and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(equal(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return bool(found == expected)
