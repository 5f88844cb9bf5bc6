"""Packed folders: the same model, its weights in the order of their use, aligned, and converted where need be."""

from __future__ import annotations

import errno
import json
import os
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from penstock.checkpoint import Checkpoint
from penstock.errors import CheckpointError, StorageError, UnsupportedModelError
from penstock.hub import load_skeleton
from penstock.pack import pack
from penstock.packing import BLOCK_NBYTES, MAX_FILES, SMALL_NBYTES, arrange, place

transformers = pytest.importorskip("transformers")


def llama(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**{**sizes, "num_hidden_layers": 2, "vocab_size": 256, **changes}, pad_token_id=0)
    model = transformers.LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    return folder


def mixtral(folder: Path) -> Path:
    config = transformers.MixtralConfig(
        hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1,
        vocab_size=61, num_local_experts=4, pad_token_id=0,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def state(cls: Any, folder: Path) -> dict[str, torch.Tensor]:
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return dict(model.state_dict())


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_a_packed_folder_loads_as_the_same_model(tmp_path: Path) -> None:
    cls = transformers.LlamaForCausalLM
    report = pack(llama(tmp_path / "in"), tmp_path / "out")
    assert same(state(cls, tmp_path / "in"), state(cls, tmp_path / "out"))
    assert report.tensors == len(Checkpoint.open(tmp_path / "in").tensors)
    assert report.converted == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_large_tensors_begin_at_whole_blocks(tmp_path: Path) -> None:
    report = pack(llama(tmp_path / "in", intermediate_size=192), tmp_path / "out")
    large = [s for s in Checkpoint.open(tmp_path / "out").tensors.values() if s.nbytes >= SMALL_NBYTES]
    assert large
    assert report.unaligned == ()
    assert all(source.pieces[0].file_offset % BLOCK_NBYTES == 0 for source in large)


def test_a_large_tensor_of_odd_size_ends_its_file(tmp_path: Path) -> None:
    cls = transformers.LlamaForCausalLM
    report = pack(llama(tmp_path / "in", vocab_size=203), tmp_path / "out")
    assert [file.name for file in report.files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert report.unaligned == ()
    assert same(state(cls, tmp_path / "in"), state(cls, tmp_path / "out"))


def test_tensors_lie_in_the_order_given(tmp_path: Path) -> None:
    llama(tmp_path / "in")
    large = [name for name, s in Checkpoint.open(tmp_path / "in").tensors.items() if s.nbytes >= SMALL_NBYTES]
    order = sorted(large, reverse=True)
    pack(tmp_path / "in", tmp_path / "out", order=["not.there", *order])
    tensors = Checkpoint.open(tmp_path / "out").tensors
    assert [name for name in tensors if name in large] == [name for name in order if name in large]


def test_stacked_experts_lie_in_one_piece_when_ordered_by_the_models_names(tmp_path: Path) -> None:
    cls = transformers.MixtralForCausalLM
    mixtral(tmp_path / "in")
    before = load_skeleton(cls, tmp_path / "in").sources
    pack(tmp_path / "in", tmp_path / "out", order=list(before))
    after = load_skeleton(cls, tmp_path / "out").sources
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert len(before[name].pieces) > 1
    assert len(after[name].pieces) == 1
    assert same(state(cls, tmp_path / "in"), state(cls, tmp_path / "out"))


def test_a_cast_is_what_the_library_would_have_done(tmp_path: Path) -> None:
    cls = transformers.LlamaForCausalLM
    llama(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "out", dtype="bfloat16")
    expected = dict(cls.from_pretrained(tmp_path / "in", dtype=torch.bfloat16).state_dict())
    assert same(expected, state(cls, tmp_path / "out"))
    assert {source.dtype for source in load_skeleton(cls, tmp_path / "out").sources.values()} == {"bfloat16"}


def test_a_cast_leaves_what_the_class_keeps_in_full_precision(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, vocab_size=61)
    cls = transformers.T5ForConditionalGeneration
    cls(config).save_pretrained(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "out", dtype=torch.float16)
    assert same(
        dict(cls.from_pretrained(tmp_path / "in", dtype=torch.float16).state_dict()), state(cls, tmp_path / "out")
    )
    dtypes = {source.dtype for source in load_skeleton(cls, tmp_path / "out").sources.values()}
    assert dtypes == {"float16", "float32"}


def test_stacked_experts_can_be_cast(tmp_path: Path) -> None:
    cls = transformers.MixtralForCausalLM
    mixtral(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "out", dtype="bfloat16")
    expected = dict(cls.from_pretrained(tmp_path / "in", dtype=torch.bfloat16).state_dict())
    assert same(expected, state(cls, tmp_path / "out"))


@pytest.fixture
def transposing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Llama checkpoints whose `saved_proj` is the transposed `gate_proj`, and `qk` both `q_proj` and `k_proj`."""
    from transformers import core_model_loading as core
    from transformers import modeling_utils

    def mapping(*_: Any, **__: Any) -> list[Any]:
        return [
            core.WeightConverter(["saved_proj.weight"], ["gate_proj.weight"], [core.Transpose(0, 1)]),
            core.WeightConverter(
                ["qk.weight"],
                ["q_proj.weight", "k_proj.weight"],
                [core.Chunk(0), core.PermuteForRope(permute_layer_names=["q_proj"])],
            ),
        ]

    monkeypatch.setattr(modeling_utils, "get_model_conversion_mapping", mapping)
    return mapping


def transposed(folder: Path) -> Path:
    llama(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("gate_proj.weight")]:
        tensors[name.replace("gate_proj", "saved_proj")] = tensors.pop(name).t().contiguous()
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        pair = [tensors.pop(name), tensors.pop(name.replace("q_proj", "k_proj"))]
        tensors[name.replace("q_proj", "qk")] = torch.cat(pair)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.usefixtures("transposing")
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_is_not_readable_in_place_is_refused_and_pack_converts_it(dtype: str | None, tmp_path: Path) -> None:
    cls = transformers.LlamaForCausalLM
    transposed(tmp_path / "in")
    with pytest.raises(
        UnsupportedModelError, match=r"(?s)gate_proj\.weight needs transpose.*saved_proj.*penstock pack"
    ):
        load_skeleton(cls, tmp_path / "in")
    report = pack(tmp_path / "in", tmp_path / "out", dtype=dtype)
    assert len(report.converted) == 2 * 3
    load_skeleton(cls, tmp_path / "out")
    expected = dict(cls.from_pretrained(tmp_path / "in", dtype=dtype or "auto").state_dict())
    assert same(expected, state(cls, tmp_path / "out"))


def converting(monkeypatch: pytest.MonkeyPatch, operation: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Llama checkpoints whose `q_proj` goes through `operation` whenever it is loaded."""
    from transformers import core_model_loading as core
    from transformers import modeling_utils

    class Operation(core.ConversionOps):
        def convert(self, input_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
            return {name: operation(tensors[0]) for name, tensors in input_dict.items()}

    again = core.WeightConverter(["q_proj.weight"], ["q_proj.weight"], [Operation()])
    monkeypatch.setattr(modeling_utils, "get_model_conversion_mapping", lambda *_, **__: [again])


def swapped(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


@pytest.mark.parametrize(
    "operation", [torch.t, lambda tensor: tensor.flatten(1).t().contiguous() if tensor.dim() == 3 else swapped(tensor)]
)
def test_a_conversion_that_would_be_done_twice_is_refused(
    operation: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converting(monkeypatch, operation)
    file = llama(tmp_path / "in") / "model.safetensors"
    tensors = load_file(file)
    if operation is not torch.t:
        tensors = {k: t.view(-1, 8, 8) if k.endswith("q_proj.weight") else t for k, t in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"convert again what pack converted"):
        pack(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_lone_file_becomes_a_folder(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(128, 128), "a": torch.arange(5), "c": torch.randn(3).half()}
    save_file(tensors, tmp_path / "x.safetensors")
    pack(tmp_path / "x.safetensors", tmp_path / "out", dtype="float16")
    packed = load_file(tmp_path / "out" / "model.safetensors")
    assert same(packed, {"b": tensors["b"].half(), "a": tensors["a"], "c": tensors["c"]})


def test_diffusers_folders_keep_their_names(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1).half()
    model.save_pretrained(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").exists()
    loaded = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out", torch_dtype=torch.float16)
    assert same(dict(model.state_dict()), dict(loaded.state_dict()))


def test_everything_but_weights_is_copied(tmp_path: Path) -> None:
    folder = llama(tmp_path / "in")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("pickle")
    (folder / ".git").mkdir()
    pack(folder, tmp_path / "out")
    kept = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert {"tokenizer.json", "1_Pooling/config.json", "config.json", "generation_config.json"} <= kept
    assert not {"pytorch_model.bin", ".git"} & kept


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = pack(llama(tmp_path / "in"), tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (report.nbytes, report.nbytes)
    assert told == sorted(told)


def test_packing_takes_a_few_mebibytes_of_memory(tmp_path: Path) -> None:
    save_file({f"w{i}": torch.zeros(8 << 20, dtype=torch.uint8) for i in range(8)}, tmp_path / "x.safetensors")
    tracemalloc.start()
    pack(tmp_path / "x.safetensors", tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 << 20


def test_a_folder_in_use_is_refused_and_kept(tmp_path: Path) -> None:
    llama(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(StorageError, match="not an earlier pack"):
            pack(tmp_path / "in", tmp_path / "out", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_an_earlier_pack_is_replaced_only_on_request(tmp_path: Path) -> None:
    llama(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "out")
    with pytest.raises(StorageError, match="--overwrite"):
        pack(tmp_path / "in", tmp_path / "out")
    pack(tmp_path / "in", tmp_path / "out", dtype="bfloat16", overwrite=True)
    assert state(transformers.LlamaForCausalLM, tmp_path / "out")["lm_head.weight"].dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("inner", ["in", "in/out", "."])
def test_packing_into_or_around_the_source_is_refused(inner: str, tmp_path: Path) -> None:
    llama(tmp_path / "in")
    with pytest.raises(StorageError, match="choose another"):
        pack(tmp_path / "in", tmp_path / inner)


def test_a_dtype_that_is_none_is_refused(tmp_path: Path) -> None:
    for dtype in ("float17", "int8", "nn"):
        with pytest.raises(UnsupportedModelError, match="floating-point"):
            pack(llama(tmp_path / "in"), tmp_path / "out", dtype=dtype)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Writing past 100 KB of a file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_leaves_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    llama(tmp_path / "in")
    request.getfixturevalue("small_files")
    with pytest.raises(StorageError, match="writing failed"):
        pack(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_full_disk_while_replacing_keeps_the_earlier_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(StorageError, match="No space left"):
        pack(tmp_path / "in", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    llama(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "in", tmp_path / "out", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_checkpoint_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    llama(tmp_path / "in")

    def touch(done: int, total: int) -> None:
        os.utime(tmp_path / "in" / "model.safetensors", ns=(1, 1))

    with pytest.raises(CheckpointError, match="written to"):
        pack(tmp_path / "in", tmp_path / "out", progress=touch)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


SIZES = st.one_of(st.integers(0, 40_000), st.integers(8, 40).map(lambda blocks: blocks * BLOCK_NBYTES))


@given(st.lists(SIZES, max_size=60))
def test_arranged_files_hold_every_tensor_once_and_align_the_large(sizes: list[int]) -> None:
    tensors = [SimpleNamespace(name=f"t{i}", dtype="uint8", shape=(n,), nbytes=n) for i, n in enumerate(sizes)]
    files = arrange(tensors)
    assert sorted(t.name for file in files for t in file) == sorted(t.name for t in tensors)
    odd = sum(n >= SMALL_NBYTES and n % BLOCK_NBYTES != 0 for n in sizes)
    for file in files:
        placed = place(file, {})
        assert len(placed.header) % BLOCK_NBYTES == 0
        assert json.loads(placed.header[8:]).keys() == {t.name for t in file}
        for tensor in file:
            if tensor.nbytes >= SMALL_NBYTES and odd < MAX_FILES:
                assert placed.offsets[tensor.name] % BLOCK_NBYTES == 0
