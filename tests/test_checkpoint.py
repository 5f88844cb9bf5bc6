"""Headers, indices and folders: what is sound is found, all else is a CheckpointError that says what is wrong."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from penstock.checkpoint import Checkpoint, FileIdentity, Piece, WeightSource
from penstock.errors import CheckpointError
from penstock.safetensors_header import TORCH_DTYPES


def raw(header: Any, data: bytes = b"", *, nbytes: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if nbytes is None else nbytes) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(path: Path, *told: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path)
    message = str(caught.value)
    for part in told:
        assert part in message
    return message


def sharded(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.arange(4.0)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.arange(6.0)}, folder / "model-00002-of-00002.safetensors")
    write_index(folder, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_each_dtype_of_the_format_has_torchs_name_and_size(name: str) -> None:
    torch_name, itemsize = TORCH_DTYPES[name]
    assert getattr(torch, torch_name).itemsize == itemsize


def test_each_tensors_bytes_are_where_the_checkpoint_says(tmp_path: Path) -> None:
    tensors = {
        "w": torch.randn(3, 5),
        "half": torch.randn(7).to(torch.bfloat16),
        "flag": torch.tensor([True, False]),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(3),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    checkpoint = Checkpoint.open(tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        source = checkpoint.tensors[name]
        (piece,) = source.pieces
        assert (getattr(torch, source.dtype), source.shape) == (tensor.dtype, tuple(tensor.shape))
        assert source.nbytes == piece.nbytes == tensor.nbytes
        data = content[piece.file_offset : piece.file_offset + piece.nbytes]
        assert data == bytes(tensor.reshape(-1).view(torch.uint8).numpy())


def test_a_weight_without_elements_has_no_piece(tmp_path: Path) -> None:
    save_file({"none": torch.empty(0, 3)}, tmp_path / "x.safetensors")
    assert Checkpoint.open(tmp_path / "x.safetensors").tensors["none"] == WeightSource("float32", (0, 3), ())


def test_an_empty_checkpoint_is_sound(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw({}))
    assert Checkpoint.open(tmp_path / "x.safetensors").tensors == {}


def test_a_folder_of_shards_is_one_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(sharded(tmp_path))
    assert [file.path.name[:11] for file in checkpoint.files] == ["model-00001", "model-00002"]
    assert [source.pieces[0].file for source in checkpoint.tensors.values()] == [0, 1]


@pytest.mark.parametrize("name", ["model.safetensors", "diffusion_pytorch_model.safetensors", "lonely.safetensors"])
def test_a_folder_with_one_file_is_a_checkpoint(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / name)
    assert list(Checkpoint.open(tmp_path).tensors) == ["a"]


def test_hub_cache_symlinks_are_followed(tmp_path: Path) -> None:
    blobs = sharded(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
    assert list(Checkpoint.open(snapshot).tensors) == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"1234567", b"12345678", b"\x00" * 64])
def test_a_file_too_short_to_be_one_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    refused(tmp_path / "x.safetensors", "x.safetensors", "download or save the file again")


OVERLAP = {"a": entry(), "b": entry(offsets=[4, 12])}
HOLE = {"a": entry(), "b": entry(offsets=[12, 20])}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"{", "not JSON"),
        (b'{"a": nope}', "not JSON"),
        (b'{"\xff": 1}', "not JSON"),
        (b'{"\\ud800": 1}', "not JSON"),
        (b"{" + b'"a":{' * 100_000, "not JSON"),
        (b" {}", "not '{'"),
        (b"[1]", "not '{'"),
        (b'{"a":1,"a":2}', "key 'a' stands twice"),
        ({"__metadata__": {"format": 1}}, "__metadata__"),
        ({"__metadata__": []}, "__metadata__"),
        ({"a": 3}, "key 'a' must hold dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "key 'a' must hold dtype"),
        ({"a": {**entry(), "more": 1}}, "key 'a' must hold dtype"),
        ({"a": entry(dtype="F4")}, "key 'a' has dtype 'F4'"),
        ({"a": entry(dtype=["F32"])}, "key 'a' has dtype ['F32']"),
        ({"a": entry(shape=2)}, "key 'a' has shape 2"),
        ({"a": entry(shape=[-2])}, "key 'a' has shape [-2]"),
        ({"a": entry(shape=[2.0])}, "key 'a' has shape [2.0]"),
        ({"a": entry(shape=[True, 2])}, "key 'a' has shape [True, 2]"),
        ({"a": entry(shape=[1] * 65)}, "key 'a' has shape"),
        ({"a": entry(shape=[3])}, "does not take 8 bytes"),
        ({"a": entry(shape=[2**62] * 60)}, "does not take 8 bytes"),
        ({"a": entry(shape=[2**62] * 60 + [0])}, "does not take 8 bytes"),
        ({"a": entry(offsets=[0])}, "data_offsets [0]"),
        ({"a": entry(offsets=[-8, 0])}, "data_offsets [-8, 0]"),
        ({"a": entry(offsets=[8, 0])}, "data_offsets [8, 0] outside"),
        ({"a": entry(offsets=[0, 2**70])}, "data_offsets [0, 1180591620717411303424]"),
        ({"a": entry(shape=[8], offsets=[0, 32])}, "outside the file's 20 data bytes"),
        (OVERLAP, "key 'b' overlaps"),
        (HOLE, "key 'b' leaves a hole"),
        ({"a": entry(offsets=[4, 12])}, "key 'a' leaves a hole"),
        ({"a": entry()}, "but the file is"),
    ],
)
def test_a_header_that_is_not_sound_is_refused_with_the_reason(header: Any, told: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw(header, bytes(20)))
    refused(tmp_path / "x.safetensors", told, str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("nbytes", [100_000_001, 2**63, 2**64 - 1])
def test_a_header_length_beyond_the_formats_limit_is_refused_unread(nbytes: int, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw(b"{}", nbytes=nbytes))
    refused(tmp_path / "x.safetensors", str(nbytes))


def test_a_header_longer_than_the_file_is_truncated(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw(b"{}", nbytes=3))
    refused(tmp_path / "x.safetensors", "truncated")


@pytest.mark.parametrize("cut", [1, 8, 24])
def test_a_truncated_file_is_refused(cut: int, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-cut])
    refused(tmp_path / "x.safetensors", "x.safetensors")


@given(st.binary(max_size=200))
@settings(max_examples=90)
def test_random_bytes_are_never_anything_but_a_checkpoint_error(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        Checkpoint.open(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*TORCH_DTYPES, "X", 3]),
        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3) | JSON,
    }
)


@given(st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=4) | JSON, st.binary(max_size=40))
@settings(max_examples=90)
def test_a_random_header_is_sound_or_a_checkpoint_error(tmp_path_factory: Any, header: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(raw(header, data))
    try:
        checkpoint = Checkpoint.open(path)
    except CheckpointError:
        return
    assert sum(source.nbytes for source in checkpoint.tensors.values()) == len(data)


@given(st.text(max_size=6).map(lambda name: {"weight_map": {"a": name}}) | JSON)
def test_a_random_index_is_sound_or_a_checkpoint_error(tmp_path_factory: Any, index: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError):
        Checkpoint.open(path)


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pth", "x.ckpt"])
def test_a_pickle_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    refused(tmp_path / name, "run any code", "save_file", "safe_serialization=True")


def test_a_pickle_under_another_name_is_refused_as_one(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "run any code")


def test_a_folder_of_pickles_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "pytorch_model.bin", "save_file", "safe_serialization=True")


def test_safetensors_beside_a_pickle_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file({"b": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert list(Checkpoint.open(tmp_path).tensors) == ["b"]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "gone.safetensors", "no such file or folder", "gone.safetensors")
    refused(tmp_path, "holds no *.safetensors")


def test_several_checkpoints_in_one_folder_are_told_apart_by_the_user(tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        save_file({"a": torch.zeros(1)}, tmp_path / name)
    refused(tmp_path, "one.safetensors, two.safetensors", "give one file's path")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    refused(tmp_path, "not a regular file")


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "", ".", "a\0.safetensors", "..", 7, None],
)
def test_an_index_that_names_no_path_inside_its_folder_is_refused(shard: Any, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    write_index(folder, {"a": shard})
    refused(folder, "key 'a' names", "model.safetensors.index.json")


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "model-00001-of-00001.safetensors"})
    refused(tmp_path, "key 'a'", "model-00001-of-00001.safetensors", "missing", "download")


def test_an_index_that_names_a_pickle_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "model.bin"})
    refused(tmp_path, "key 'a'", "model.bin", "run any code")


def test_an_index_that_names_a_key_its_shard_lacks_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    write_index(tmp_path, {"c": "model-00001-of-00002.safetensors"})
    refused(tmp_path, "key 'c' is not in shard 'model-00001-of-00002.safetensors'")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 3}', "{"])
def test_an_index_without_a_map_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, "model.safetensors.index.json")


def test_the_index_decides_where_two_shards_hold_a_key(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(4), "b": torch.ones(1)}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "./two.safetensors", "b": "two.safetensors"})
    checkpoint = Checkpoint.open(tmp_path)
    assert [file.path.name for file in checkpoint.files] == ["two.safetensors"]
    save_file({"a": torch.zeros(4), "c": torch.zeros(1)}, tmp_path / "one.safetensors")
    write_index(tmp_path, {"c": "one.safetensors", "b": "two.safetensors"})
    refused(tmp_path, "key 'a' is also in another shard")
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert Checkpoint.open(tmp_path).tensors["a"].pieces[0].file == 0


def test_an_unchanged_file_passes_its_check(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "x.safetensors")
    Checkpoint.open(tmp_path / "x.safetensors").check()


def test_a_file_that_was_replaced_rewritten_truncated_or_removed_fails_its_check(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(4)}, path)
    other = tmp_path / "y.safetensors"
    save_file({"a": torch.ones(4)}, other)

    def changed(told: str) -> None:
        with pytest.raises(CheckpointError, match=told):
            identity.check()

    identity = FileIdentity.of(path)
    os.utime(path, ns=(1, 1))
    changed("written to")
    identity = FileIdentity.of(path)
    os.truncate(path, 20)
    changed("to 20 bytes")
    identity = FileIdentity.of(path)
    other.replace(path)
    changed("replaced by another file")
    identity = FileIdentity.of(path)
    path.unlink()
    changed("cannot be read")


def test_the_fingerprint_follows_names_content_and_time(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(4)}, path)
    os.utime(path, ns=(1, 1))
    first = Checkpoint.open(path).fingerprint
    assert Checkpoint.open(path).fingerprint == first
    os.utime(path, ns=(1, 2))
    second = Checkpoint.open(path).fingerprint
    save_file({"b": torch.zeros(4)}, path)
    os.utime(path, ns=(1, 1))
    third = Checkpoint.open(path).fingerprint
    path.rename(tmp_path / "z.safetensors")
    fourth = Checkpoint.open(tmp_path / "z.safetensors").fingerprint
    assert len({first, second, third, fourth}) == 4


def test_merged_checkpoints_keep_their_files_apart(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4), "both": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(4), "both": torch.zeros(2)}, tmp_path / "two.safetensors")
    one, two = (Checkpoint.open(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    merged = one.merged(two)
    assert merged.files == one.files + two.files
    assert merged.tensors["a"] == one.tensors["a"]
    assert merged.tensors["b"].pieces == (Piece(1, *_rest(two.tensors["b"].pieces[0])),)
    assert merged.tensors["both"].shape == (2,)
    assert merged.fingerprint not in (one.fingerprint, two.fingerprint)


def _rest(piece: Piece) -> tuple[int, int, int]:
    return piece.file_offset, piece.nbytes, piece.weight_offset
