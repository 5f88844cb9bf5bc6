"""Provenance tensors: whatever is done to them, they know their bytes or how to compute them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from penstock.checkpoint import Checkpoint
from penstock.errors import UnsupportedModelError
from penstock.opener import by_key
from penstock.provenance import Ledger, ProvenanceTensor, compute, provenance_tensor, source_of

Pair = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Real tensors, and the provenance tensors of the file that holds them."""
    path = tmp_path_factory.mktemp("provenance") / "x.safetensors"
    tensors = {name: torch.randn(4, 3, 2) for name in "abcd"}
    save_file(tensors, path)
    checkpoint = Checkpoint.open(path)
    ledger = Ledger(list(checkpoint.files))
    return [(tensor, provenance_tensor(ledger, name, checkpoint.tensors[name])) for name, tensor in tensors.items()]


def read(tensor: ProvenanceTensor) -> torch.Tensor:
    source = source_of(tensor)
    assert source.nbytes == tensor.numel() * tensor.element_size()
    data = bytearray(source.nbytes)
    for piece in source.pieces:
        data[piece.weight_offset : piece.weight_offset + piece.nbytes] = tensor.provenance.ledger.read(piece)
    return torch.frombuffer(data, dtype=tensor.dtype).reshape(tensor.shape) if data else torch.empty(tensor.shape)


def steps(draw: Callable[..., Any], shape: torch.Size) -> Callable[[torch.Tensor], torch.Tensor]:
    """One random operation on tensors of `shape`."""
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    index = draw(st.integers(0, max(shape[dim] - 1, 0)))
    size = draw(st.integers(1, 3))
    choices: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda tensor: tensor.narrow(dim, min(index, tensor.shape[dim]), max(min(size, tensor.shape[dim] - index), 0)),
        lambda tensor: tensor.split(size, dim)[-1],
        lambda tensor: tensor.chunk(size, dim)[0].contiguous(),
        lambda tensor: tensor.unsqueeze(dim),
        lambda tensor: tensor.squeeze(),
        lambda tensor: tensor.squeeze(dim),
        lambda tensor: tensor.transpose(dim, 0).contiguous(),
        lambda tensor: tensor.reshape(-1, shape[-1]) if shape[-1] else tensor,
        lambda tensor: tensor.flatten(),
        lambda tensor: torch.cat([tensor, tensor.clone()], dim),
        lambda tensor: torch.stack([tensor, tensor], dim),
        lambda tensor: tensor[..., ::2].contiguous(),
        lambda tensor: tensor.expand(2, *tensor.shape).contiguous(),
        lambda tensor: tensor.to(torch.float64),
        lambda tensor: tensor * 2,
    ]
    if shape[dim]:
        choices += [lambda tensor: tensor.select(dim, index), lambda tensor: tensor.unbind(dim)[index]]
    return draw(st.sampled_from(choices))


@given(data=st.data())
@settings(max_examples=90, deadline=None)
def test_a_tensor_keeps_its_bytes_through_any_operations(pairs: list[Pair], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(range(4)), min_size=1, max_size=4))
    dim = data.draw(st.integers(-3, 2))
    real, known = (torch.cat([pairs[number][side] for number in chosen], dim) for side in (0, 1))
    for _ in range(data.draw(st.integers(0, 4))):
        if not real.dim():
            break
        step = steps(data.draw, real.shape)
        real, known = step(real), step(known)
    assert isinstance(known, ProvenanceTensor)
    assert (known.shape, known.dtype) == (real.shape, real.dtype)
    assert torch.equal(compute(known, read), real)


def test_slices_and_joins_stay_readable_in_place(pairs: list[Pair]) -> None:
    known = [pair[1] for pair in pairs]
    stacked = torch.stack(known, 1)
    for tensor in (
        stacked,
        torch.cat(known, 2),
        stacked[1:3, 0],
        known[0].view(2, 12).unbind(0)[1],
        known[0].to("cpu"),
    ):
        assert isinstance(tensor, ProvenanceTensor)
        assert tensor.provenance.lost is None


def test_neighbours_in_a_file_are_one_piece(pairs: list[Pair]) -> None:
    joined = torch.cat([pair[1] for pair in pairs])
    assert isinstance(joined, ProvenanceTensor)
    assert len(joined.provenance.pieces) == 1


def test_a_lost_tensor_says_what_it_went_through_first(pairs: list[Pair]) -> None:
    lost = torch.stack([pairs[0][1].half().transpose(0, 1), pairs[1][1].half().transpose(0, 1)])
    assert isinstance(lost, ProvenanceTensor)
    assert lost.provenance.lost == "a cast from float32 to float16"
    assert lost.provenance.key == "a"


def test_writing_to_one_is_refused_and_noted(pairs: list[Pair]) -> None:
    known = pairs[0][1]
    assert isinstance(known, ProvenanceTensor)
    with pytest.raises(UnsupportedModelError, match="'a' goes through fill_ in place"):
        known.fill_(0)
    assert known.provenance.ledger.failures[-1:] == ["checkpoint key 'a' goes through fill_ in place"]


def test_writing_to_a_view_of_one_is_refused(pairs: list[Pair]) -> None:
    for view in (pairs[0][1][1:], pairs[0][1].transpose(0, 1), pairs[0][1].half().transpose(0, 1)):
        with pytest.raises(UnsupportedModelError, match="in place"):
            view.zero_()


def test_writing_to_a_computed_tensor_changes_no_weight(pairs: list[Pair]) -> None:
    real, known = pairs[0]
    temporary = known * 2
    temporary.zero_()
    assert isinstance(temporary, ProvenanceTensor)
    assert temporary.provenance.lost == "zero_ in place"
    assert isinstance(known, ProvenanceTensor)
    assert torch.equal(read(known), real)
    with pytest.raises(UnsupportedModelError, match="zero_"):
        compute(temporary, read)


def test_asking_for_a_value_is_refused(pairs: list[Pair]) -> None:
    with pytest.raises(UnsupportedModelError):
        pairs[0][1].sum().item()


def test_equality_reads_the_bytes(pairs: list[Pair]) -> None:
    (a, known_a), (b, known_b) = pairs[:2]
    assert torch.equal(known_a, known_a.clone())
    assert torch.equal(known_a, known_b) is torch.equal(a, b) is False
    assert not torch.equal(known_a, known_a.flatten())


def test_casts_of_whole_tensors_are_noted_where_they_can_be_done(tmp_path: Path) -> None:
    save_file({"a": torch.randn(4, 2)}, tmp_path / "x.safetensors")
    source = Checkpoint.open(tmp_path / "x.safetensors").tensors["a"]
    ledger = Ledger(casts={})
    tensor = provenance_tensor(ledger, "a", by_key(5, source))
    cast = tensor.to(torch.bfloat16)
    assert isinstance(cast, ProvenanceTensor)
    assert ledger.casts == {5: torch.bfloat16}
    assert [piece.nbytes for piece in cast.provenance.pieces] == [16]
    other = tensor.to(torch.float16)
    part = tensor[1:].to(torch.bfloat16)
    assert isinstance(other, ProvenanceTensor)
    assert isinstance(part, ProvenanceTensor)
    assert other.provenance.lost
    assert part.provenance.lost
