"""Parameters point at their bytes or cannot be read; they stay the objects that they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import penstock
from penstock.checkpoint import Checkpoint
from penstock.runtime.binding import FileViews, unreadable
from penstock.runtime.collecting import collect_weights

from ..streaming import WIDTH, counted_memory, stream_tightly  # noqa: TID252
from ..zoo import Block, X  # noqa: TID252

__all__ = ["counted_memory"]

TOUCHES = {
    "product": lambda w: X @ w,
    "linear": lambda w: F.linear(X, w),
    "sum": lambda w: w.sum(),
    "copy": lambda w: w.clone().tolist(),
    "view and sum": lambda w: w.t()[:3].sum(),
    "rows": lambda w: w[torch.tensor([0, 2])],
    "one number": lambda w: w[0, 0].item(),
    "list": lambda w: w.tolist(),
    "array": lambda w: w.detach().numpy(),
    "cast": lambda w: w.half().sum().item(),
    "normalisation": lambda w: F.layer_norm(X, (WIDTH,), w[0]),
    "bias": lambda w: F.linear(X, torch.zeros(WIDTH, WIDTH), w[0]),
    "recurrence": lambda w: torch.lstm_cell(X, (X, X), w.repeat(4, 1), w.repeat(4, 1)),
    "choice": lambda w: torch.where(X > 0, X, w[0]),
    "comparison": lambda w: torch.equal(w, torch.zeros(WIDTH, WIDTH)),
    "convolution": lambda w: F.conv2d(torch.zeros(1, 1, 200, 200), w.view(1, 1, WIDTH, WIDTH)),
    "lookup": lambda w: F.embedding(torch.tensor([1, 2]), w),
    "write": lambda w: w.data.fill_(1.0),
    "writing it into another": lambda w: torch.zeros(WIDTH, WIDTH).copy_(w),
    "concatenation": lambda w: torch.cat([w, w]),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_a_weight_outside_its_lifetime_is_unreadable(touch: str) -> None:
    hollow = unreadable((WIDTH, WIDTH), torch.float32, torch.device("cpu"))
    with torch.no_grad(), pytest.raises((NotImplementedError, RuntimeError, TypeError, ValueError)):
        TOUCHES[touch](hollow)


@pytest.mark.usefixtures("counted_memory")
def test_between_passes_a_streamed_weight_is_unreadable_and_tells_what_it_is() -> None:
    module = nn.Sequential(*[Block() for _ in range(4)])
    stream_tightly(module, (X,), share=0.0)
    with torch.inference_mode():
        module(X)
    streamed = {penstock.inspect(module).plan.weight_names[load.weight] for load in penstock.inspect(module).plan.loads}
    for name in streamed:
        weight = module.get_parameter(name)
        assert weight.shape[0] == WIDTH
        assert weight.dtype == torch.float32
        with pytest.raises((NotImplementedError, RuntimeError)):
            weight.detach().sum()
    assert streamed
    penstock.restore(module)


class Named(nn.Parameter):
    """A parameter subclass with something of its own."""

    label: str


def collected(module: nn.Module, path: Path) -> tuple[list[Any], Checkpoint]:
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    opened = Checkpoint.open(path)
    return collect_weights(module, dict(opened.tensors), torch.device("cpu")), opened


def test_identity_class_and_attributes_survive_adoption_and_binding(tmp_path: Path) -> None:
    module = nn.Linear(4, 4)
    module.weight = Named(module.weight.detach())
    module.weight.label = "mine"
    before, values = module.weight, module.weight.detach().clone()
    (weight, _), _ = collected(module, tmp_path / "m.safetensors")
    weight.adopt()
    assert module.weight is before
    assert module.weight.is_meta
    weight.bind(values)
    assert torch.equal(module.weight, values)
    weight.unbind()
    weight.bind(values)
    assert (type(module.weight), module.weight.label, module.weight.requires_grad) == (Named, "mine", True)


def test_a_parameter_of_a_skeleton_becomes_one_that_can_be_bound(tmp_path: Path) -> None:
    module = nn.Linear(4, 4)
    values = module.weight.detach().clone()
    with torch.device("meta"):
        skeleton = nn.Linear(4, 4)
    skeleton.weight.requires_grad_(False)
    save_file(module.state_dict(), tmp_path / "m.safetensors")
    sources = dict(Checkpoint.open(tmp_path / "m.safetensors").tensors)
    before = skeleton.weight
    weight, _ = collect_weights(skeleton, sources, torch.device("cpu"))
    weight.adopt()
    weight.bind(values)
    assert skeleton.weight is before
    assert torch.equal(skeleton.weight, values)
    assert not skeleton.weight.requires_grad


def test_a_weight_with_several_owners_is_collected_once_with_all_of_them(tmp_path: Path) -> None:
    module = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    module["b"].weight = module["a"].weight
    save_file({"a.weight": module["a"].weight.detach()}, tmp_path / "m.safetensors")
    opened = Checkpoint.open(tmp_path / "m.safetensors")
    (weight,) = collect_weights(module, dict(opened.tensors), torch.device("cpu"))
    assert weight.name == "a.weight"
    assert [owner for owner, _ in weight.owners] == [module["a"], module["b"]]


def test_a_mapped_weight_has_its_bytes_and_never_writes_them_back(tmp_path: Path) -> None:
    module = nn.Linear(33, 7)
    values = module.weight.detach().clone()
    weights, opened = collected(module, tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    for weight in weights:
        view = FileViews(opened).view(weight)
        assert torch.equal(view, dict(module.named_parameters())[weight.name])
        view.fill_(9.0)
    assert torch.equal(module.weight, values)
    assert (tmp_path / "m.safetensors").read_bytes() == before
