"""Present weights written to a file, whole and aligned, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from penstock.errors import UnsupportedModelError
from penstock.spill import spill


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.randn(64, 64))
        self.turned = nn.Parameter(torch.randn(8, 16).t())
        self.short = nn.Parameter(torch.randn(5, dtype=torch.bfloat16))
        self.whole = nn.Parameter(torch.arange(7), requires_grad=False)
        self.flags = nn.Parameter(torch.tensor([True, False]), requires_grad=False)
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.number = nn.Parameter(torch.tensor(1.5))
        self.again = self.large
        self.register_buffer("buffer", torch.ones(3))


def test_every_parameter_is_written_once_with_its_bits(tmp_path: Path) -> None:
    module = Mixed()
    checkpoint, folder = spill(module, tmp_path)
    written = load_file(folder / "model.safetensors")
    parameters = dict(module.named_parameters())
    assert set(written) == set(parameters) == set(checkpoint.tensors)
    in_memory = {name: p if name != "turned" else p.t().reshape(p.shape) for name, p in parameters.items()}
    assert all(torch.equal(written[name], in_memory[name]) for name in parameters)
    assert all(written[name].dtype == parameters[name].dtype for name in parameters)
    shutil.rmtree(folder)


def test_large_weights_begin_on_a_block(tmp_path: Path) -> None:
    checkpoint, folder = spill(Mixed(), tmp_path)
    (piece,) = checkpoint.tensors["large"].pieces
    assert piece.file_offset % 4096 == 0
    shutil.rmtree(folder)


class Holder(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


UNWRITABLE = {
    "without memory": lambda: torch.zeros(3, device="meta"),
    "sparse": lambda: torch.zeros(3, 3).to_sparse(),
    "a dtype that the format lacks": lambda: torch.zeros(3, dtype=torch.complex32),
}


@pytest.mark.parametrize("kind", UNWRITABLE)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_what_cannot_be_written_is_refused_by_name_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'weight'"):
        spill(Holder(UNWRITABLE[kind]()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lazy_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'weight'"):
        spill(nn.LazyLinear(3), tmp_path)
    assert not list(tmp_path.iterdir())
