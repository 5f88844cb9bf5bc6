"""penstock.sweep: what a module would bring within many budgets, whether it is streamed or not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import penstock
from penstock.planning.strategies import names

from .streaming import counted_memory, weight_nbytes
from .zoo import Shared, X

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return Shared().eval()


@pytest.fixture
def checkpoint(module: nn.Module, tmp_path: Path) -> Path:
    save_file({name: tensor.clone() for name, tensor in module.state_dict().items()}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_sweep_leaves_the_module_as_it_is(module: nn.Module, checkpoint: Path) -> None:
    before = copy.deepcopy(module.state_dict())
    curve = penstock.sweep(module, checkpoint, example=X)
    assert curve.model == "Shared"
    assert curve.strategies == names()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with pytest.raises(penstock.StreamStateError):
        penstock.inspect(module)


def test_a_point_is_what_the_plan_for_its_budget_predicts(module: nn.Module, checkpoint: Path) -> None:
    with pytest.raises(penstock.BudgetInfeasibleError) as refused:
        penstock.plan(module, checkpoint, budget=1, example=X)
    least = refused.value.needed_nbytes
    budgets = [least, f"{least + weight_nbytes(module)}", penstock.Budget("1GiB")]
    curve = penstock.sweep(module, checkpoint, example=X, budgets=budgets, strategies=["auto"])
    for point in curve.points:
        plan = penstock.plan(module, checkpoint, budget=point.budget_nbytes, example=X)
        assert plan.strategy == point.strategy
        assert plan.prediction.warm_seconds == point.predicted_seconds
    assert curve.budgets == (least, least + weight_nbytes(module), 2**30)


def test_a_streamed_module_is_swept_with_the_times_that_its_passes_took(module: nn.Module) -> None:
    penstock.stream(module, budget="64MiB", example=X)
    assert not penstock.sweep(module, example=X, budgets=["64MiB"]).is_timed
    with torch.inference_mode():
        for _ in range(5):
            module(X)
    curve = penstock.sweep(module, example=X)
    assert curve.is_timed
    assert penstock.inspect(module).budget == penstock.Budget("64MiB")
    penstock.restore(module)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"budgets": ["many"]}, penstock.BudgetError),
        ({"budgets": []}, penstock.BudgetError),
        ({"strategies": ["fastest"]}, penstock.PlanError),
        ({"strategies": []}, penstock.PlanError),
        ({"device": "tpu"}, penstock.UnsupportedModelError),
    ],
)
def test_what_makes_no_sense_is_refused(
    module: nn.Module, checkpoint: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        penstock.sweep(module, checkpoint, example=X, **arguments)


def test_a_module_without_a_checkpoint_has_to_be_streamed(module: nn.Module, checkpoint: Path) -> None:
    with pytest.raises(penstock.StreamStateError):
        penstock.sweep(module, example=X)
    penstock.stream(module, budget="64MiB", example=X)
    with pytest.raises(penstock.StreamStateError, match="streamed already"):
        penstock.sweep(module, checkpoint, example=X)
    penstock.restore(module)
