"""Lookups answered from storage are the lookups of the table itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import penstock
from penstock.checkpoint import Checkpoint
from penstock.runtime.rows import RowTable
from penstock.runtime.storage import FileStorage

from ..streaming import WIDTH, counted_memory, needed_nbytes  # noqa: TID252
from ..zoo import Block  # noqa: TID252

__all__ = ["counted_memory"]

ROWS, COLUMNS = 700, 37
TABLE = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def table(tmp_path: Path) -> Iterator[RowTable]:
    save_file({"pad": torch.zeros(3), "table": TABLE}, tmp_path / "t.safetensors")
    opened = Checkpoint.open(tmp_path / "t.safetensors")
    storage = FileStorage(opened.files)
    yield RowTable(storage, opened.tensors["table"])
    storage.close()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.sets(st.integers(0, ROWS - 1), max_size=60))
def test_rows_are_read_as_they_lie_in_the_table(table: RowTable, rows: set[int]) -> None:
    wanted = np.array(sorted(rows), dtype=np.int64)
    assert torch.equal(table.read(wanted), TABLE[torch.from_numpy(wanted)])


def test_all_rows_at_once_are_read_too(table: RowTable) -> None:
    assert torch.equal(table.read(np.arange(ROWS)), TABLE)


class Offset(nn.Embedding):
    """As OPT's positions: the rows asked for are moved, the answer scaled."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids + 2) * 0.5


class Lookup(nn.Module):
    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding, self.blocks = embedding, nn.Sequential(Block(), Block())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.embedding(ids))


EMBEDDINGS = {
    "plain": lambda: nn.Embedding(500, WIDTH),
    "padding": lambda: nn.Embedding(500, WIDTH, padding_idx=3),
    "subclass": lambda: Offset(500, WIDTH),
    "half precision": lambda: nn.Embedding(500, WIDTH, dtype=torch.bfloat16),
    "scaled gradients": lambda: nn.Embedding(500, WIDTH, scale_grad_by_freq=True),
}
IDS = {
    "a batch": torch.tensor([[1, 3, 3, 497], [0, 250, 251, 1]]),
    "int32": torch.tensor([5, 4, 3], dtype=torch.int32),
    "one": torch.tensor(7),
    "none": torch.zeros(0, 4, dtype=torch.long),
}


@pytest.mark.usefixtures("counted_memory")
@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_a_streamed_lookup_is_the_resident_one(kind: str) -> None:
    torch.manual_seed(0)
    module = Lookup(EMBEDDINGS[kind]())
    module.blocks.to(module.embedding.weight.dtype)
    example = IDS["a batch"]
    with torch.inference_mode():
        expected = {name: module.embedding(ids) for name, ids in IDS.items()}
        whole = module(example)
        penstock.stream(module, budget=needed_nbytes(module, (example,)), example=example)
        plan = penstock.inspect(module).plan
        assert [plan.weight_names[index] for index in plan.rows] == ["embedding.weight"]
        assert torch.equal(module(example), whole)
        for name, ids in IDS.items():
            assert torch.equal(module.embedding(ids), expected[name]), name
        for wrong in (torch.tensor([500]), torch.tensor([-3])):
            with pytest.raises(IndexError):
                module.embedding(wrong)
        assert torch.equal(
            F.embedding(example, module.state_dict()["embedding.weight"]),
            torch.nn.functional.embedding(example, penstock.restore(module).embedding.weight),
        )
