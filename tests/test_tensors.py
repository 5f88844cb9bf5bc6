"""Tensors go in and out of files by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from penstock.errors import CheckpointError
from penstock.tensors import load_tensors, named_tensors, save_tensors


def test_every_tensor_of_an_output_has_a_name() -> None:
    one, two, three = torch.zeros(1), torch.ones(2), torch.ones(3)
    output = BaseModelOutput(last_hidden_state=one, hidden_states=(two, three))
    names = named_tensors(output)
    assert list(names) == ["last_hidden_state", "hidden_states.0", "hidden_states.1"]
    assert names["hidden_states.1"] is three


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (torch.zeros(1), ["output"]),
        ((torch.zeros(1), [torch.zeros(1)]), ["output.0", "output.1.0"]),
        ({"a": {"b": torch.zeros(1)}, "c": None}, ["a.b"]),
        (object(), []),
    ],
)
def test_outputs_of_any_form_are_walked(output: object, names: list[str]) -> None:
    assert list(named_tensors(output)) == names


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"whole": base, "shared": base[1:], "strided": base.T, "brain": base.bfloat16()}
    save_tensors(tensors, tmp_path / "file.safetensors")
    loaded = load_tensors(tmp_path / "file.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\xff" * 100])
def test_what_is_no_safetensors_file_is_a_checkpoint_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "file.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(file)):
        load_tensors(file)
