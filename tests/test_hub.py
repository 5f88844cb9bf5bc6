"""Skeletons of transformers and diffusers models: each weight's bytes are the ones the library itself would load."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock.opener as opener
from penstock.checkpoint import Checkpoint, WeightSource
from penstock.errors import CheckpointError, CheckpointMismatchError, UnsupportedModelError
from penstock.hub import Skeleton, load_skeleton, match
from penstock.packing import place

transformers = pytest.importorskip("transformers")

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 61}
DECODER = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0}
MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "bert_mlm_tied": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)),
    "gpt2_tied": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=61, n_positions=32)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)),
    "mixtral_stacked": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**DECODER, num_local_experts=4)
    ),
    "qwen3_moe_stacked": lambda: transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            **DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=16
        )
    ),
    "t5_tied": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, vocab_size=61)
    ),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            image_size=16,
            patch_size=4,
        )
    ),
    "resnet_buffers": lambda: transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "wav2vec2_weight_norm": lambda: transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            **SIZES,
            conv_dim=(8, 8),
            conv_kernel=(3, 3),
            conv_stride=(2, 2),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    ),
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**SIZES, "max_position_embeddings": 16},
            vision_config={**SIZES, "image_size": 16, "patch_size": 8},
            projection_dim=16,
        )
    ),
}


def saved(model: Any, folder: Path, **kwargs: Any) -> Path:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape))
    model.save_pretrained(folder, **kwargs)
    return folder


def assembled(checkpoint: Checkpoint, source: WeightSource) -> torch.Tensor:
    data = bytearray(source.nbytes)
    for piece in source.pieces:
        with checkpoint.files[piece.file].path.open("rb") as file:
            file.seek(piece.file_offset)
            data[piece.weight_offset : piece.weight_offset + piece.nbytes] = file.read(piece.nbytes)
    if not data:
        return torch.empty(source.shape, dtype=getattr(torch, source.dtype))
    return torch.frombuffer(data, dtype=getattr(torch, source.dtype)).reshape(source.shape)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return left.contiguous().view(-1).view(torch.uint8).equal(right.contiguous().view(-1).view(torch.uint8))


def check_like_the_library(skeleton: Skeleton, model: torch.nn.Module) -> None:
    """Every tensor of the skeleton is a source with the library's bytes, or real and the library's own."""
    own, expected = skeleton.module.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    assert list(own) == list(expected)
    names_by_tensor: dict[int, set[str]] = {}
    expected_names: dict[int, set[str]] = {}
    for name, tensor in own.items():
        names_by_tensor.setdefault(id(tensor), set()).add(name)
        expected_names.setdefault(id(expected[name]), set()).add(name)
        assert type(tensor) is type(expected[name]), name
        assert tensor.requires_grad == expected[name].requires_grad
        if name in skeleton.sources:
            assert tensor.is_meta
            assert same_bits(assembled(skeleton.checkpoint, skeleton.sources[name]), expected[name].detach()), name
        elif not tensor.is_meta:
            assert same_bits(tensor.detach(), expected[name].detach()), name
    ties = sorted(names_by_tensor.values(), key=min)
    assert ties == sorted(expected_names.values(), key=min)
    for names in ties:
        if own[min(names)].is_meta:
            assert len(names & set(skeleton.sources)) == 1
    unsaved = dict(skeleton.module.named_buffers())
    for name, buffer in model.named_buffers():
        assert unsaved[name].is_meta == (name in skeleton.sources)
        if name not in skeleton.sources:
            assert same_bits(unsaved[name], buffer), name
    assert not skeleton.module.training


def both(cls: Any, folder: Path, **kwargs: Any) -> Skeleton:
    torch.manual_seed(7)
    expected = cls.from_pretrained(folder, **kwargs)
    torch.manual_seed(7)
    skeleton = load_skeleton(cls, folder, **kwargs)
    check_like_the_library(skeleton, expected)
    return skeleton


@pytest.mark.parametrize("name", MODELS)
def test_a_skeletons_sources_hold_the_bytes_that_the_library_loads(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    both(type(model), saved(model, tmp_path))


@pytest.mark.parametrize("name", ["mixtral_stacked", "qwen3_moe_stacked"])
def test_stacked_experts_are_pieces_side_by_side(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    sources = both(type(model), saved(model, tmp_path)).sources
    assert max(len(source.pieces) for source in sources.values()) >= 4


@pytest.mark.parametrize("name", ["bert", "mixtral_stacked"])
def test_a_sharded_folder_is_one_checkpoint(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    skeleton = both(type(model), saved(model, tmp_path, max_shard_size="20KB"))
    assert len(skeleton.checkpoint.files) > 2
    assert skeleton.checkpoint.fingerprint == Checkpoint.open(tmp_path).fingerprint


def test_a_base_models_checkpoint_loads_into_a_class_with_a_head(tmp_path: Path) -> None:
    saved(MODELS["bert"](), tmp_path)
    skeleton = both(transformers.BertForSequenceClassification, tmp_path)
    assert not skeleton.module.classifier.weight.is_meta
    assert "bert.encoder.layer.0.attention.self.query.weight" in skeleton.sources


def test_a_headed_checkpoint_loads_into_the_base_class(tmp_path: Path) -> None:
    saved(MODELS["bert_mlm_tied"](), tmp_path)
    both(transformers.BertModel, tmp_path)


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM"])
def test_auto_classes_choose_the_class(auto: str, tmp_path: Path) -> None:
    saved(MODELS["llama"](), tmp_path)
    both(getattr(transformers, auto), tmp_path, attn_implementation="eager")


def test_a_given_config_counts(tmp_path: Path) -> None:
    saved(MODELS["llama"](), tmp_path)
    config = transformers.LlamaConfig(**{**DECODER, "num_hidden_layers": 1})
    skeleton = both(transformers.LlamaForCausalLM, tmp_path, config=config)
    assert len(skeleton.module.model.layers) == 1


def test_a_subfolder_and_a_variant_are_found(tmp_path: Path) -> None:
    saved(MODELS["bert"](), tmp_path / "inner")
    both(transformers.BertModel, tmp_path, subfolder="inner")
    saved(MODELS["bert"](), tmp_path / "other", variant="fp16")
    both(transformers.BertModel, tmp_path / "other", variant="fp16")


def test_half_precision_weights_keep_their_dtype(tmp_path: Path) -> None:
    saved(MODELS["llama"]().to(torch.bfloat16), tmp_path)
    skeleton = both(transformers.LlamaForCausalLM, tmp_path, dtype="auto")
    assert {source.dtype for source in skeleton.sources.values()} == {"bfloat16"}


def test_another_dtype_than_the_checkpoints_is_refused_and_names_pack(tmp_path: Path) -> None:
    saved(MODELS["llama"](), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight|embed_tokens\.weight") as caught:
        load_skeleton(transformers.LlamaForCausalLM, tmp_path, dtype=torch.bfloat16)
    assert "a cast from float32 to bfloat16" in str(caught.value)
    assert "penstock pack" in str(caught.value)
    assert "--dtype" in str(caught.value)


def retie(folder: Path, alter: bool) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    if alter:
        state["lm_head.weight"][-1, -1] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("alter", [False, True])
def test_weights_saved_twice_are_tied_only_if_their_bytes_are_equal(alter: bool, tmp_path: Path) -> None:
    saved(MODELS["gpt2_tied"](), tmp_path)
    retie(tmp_path, alter)
    module = both(transformers.GPT2LMHeadModel, tmp_path).module
    assert (module.lm_head.weight is module.transformer.wte.weight) is not alter


def test_loading_leaves_transformers_as_it_was(tmp_path: Path) -> None:
    import transformers.modeling_utils as modeling

    before = {name: getattr(modeling, name) for name in ("safe_open", "convert_and_load_state_dict_in_model")}
    saved(MODELS["bert"](), tmp_path)
    load_skeleton(transformers.BertModel, tmp_path)
    with pytest.raises(UnsupportedModelError):
        load_skeleton(transformers.BertModel, tmp_path, dtype=torch.float16)
    assert {name: getattr(modeling, name) for name in before} == before


def test_another_threads_from_pretrained_still_loads_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(MODELS["bert"](), tmp_path)
    loaded: list[torch.nn.Module] = []
    settle = opener.Opener.checkpoint

    def load_elsewhere_first(self: Any) -> Checkpoint:
        if not loaded:
            thread = threading.Thread(target=lambda: loaded.append(transformers.BertModel.from_pretrained(tmp_path)))
            thread.start()
            thread.join()
        return settle(self)

    monkeypatch.setattr(opener.Opener, "checkpoint", load_elsewhere_first)
    load_skeleton(transformers.BertModel, tmp_path)
    assert not any(parameter.is_meta for parameter in loaded[0].parameters())
    assert all(type(parameter) is torch.nn.Parameter for parameter in loaded[0].parameters())


def test_a_model_larger_than_memory_has_a_skeleton(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(num_hidden_layers=200, vocab_size=100)
    with torch.device("meta"):
        tensors = transformers.LlamaForCausalLM(config).state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.dim()}
    config.save_pretrained(tmp_path)
    placed = place([WeightOfShape(name, tuple(tensor.shape)) for name, tensor in tensors.items()], {"format": "pt"})
    nbytes = len(placed.header) + sum(tensor.nbytes for tensor in tensors.values())
    (tmp_path / "model.safetensors").write_bytes(placed.header)
    os.truncate(tmp_path / "model.safetensors", nbytes)  # sparse: takes no room
    skeleton = load_skeleton(transformers.LlamaForCausalLM, tmp_path)
    assert nbytes > 150 << 30
    assert sum(source.nbytes for source in skeleton.sources.values()) == nbytes - len(placed.header)
    real = [*skeleton.module.parameters(), *skeleton.module.buffers()]
    assert sum(tensor.nbytes for tensor in real if not tensor.is_meta) < 1 << 20


def test_a_pickle_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    saved(MODELS["bert"](), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safe_serialization"):
        load_skeleton(transformers.BertModel, tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="snapshot_download"):
        load_skeleton(transformers.BertModel, tmp_path / "bert-base-uncased")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    saved(MODELS["bert"](), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_skeleton(transformers.BertModel, tmp_path)


def test_shapes_that_differ_from_the_config_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    saved(MODELS["llama"](), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(CheckpointMismatchError, match=r"gate_proj\.weight has shape \[48, 32\], not \[40, 32\]"):
        load_skeleton(transformers.LlamaForCausalLM, tmp_path)


def test_mismatched_sizes_are_initialised_where_the_user_allows_it(tmp_path: Path) -> None:
    saved(MODELS["vit"](), tmp_path)
    both(transformers.ViTForImageClassification, tmp_path, num_labels=5, ignore_mismatched_sizes=True)


def test_initialising_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    saved(MODELS["bert"](), tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"classifier\.bias"):
        load_skeleton(transformers.BertForSequenceClassification, tmp_path, max_initialized_nbytes=16)


@pytest.mark.parametrize(
    "kwargs",
    [{"device_map": "auto"}, {"state_dict": {"a": 1}}, {"use_safetensors": False}, {"output_loading_info": True}],
)
def test_arguments_against_the_stream_are_refused_by_name(kwargs: dict[str, Any], tmp_path: Path) -> None:
    saved(MODELS["bert"](), tmp_path)
    with pytest.raises(UnsupportedModelError, match=next(iter(kwargs))):
        load_skeleton(transformers.BertModel, tmp_path, **kwargs)


def test_other_classes_are_sent_to_stream(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"penstock\.stream"):
        load_skeleton(torch.nn.Linear, tmp_path)


def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    saved(MODELS["bert"](), tmp_path / "model", max_shard_size="20KB")
    index = next((tmp_path / "model").glob("*.index.json"))
    document = json.loads(index.read_text())
    key = next(iter(document["weight_map"]))
    document["weight_map"][key] = "../stolen.safetensors"
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="inside the checkpoint's folder"):
        load_skeleton(transformers.BertModel, tmp_path / "model")


def diffusers_model() -> Any:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


@pytest.mark.parametrize("kwargs", [{}, {"max_shard_size": "20KB"}])
def test_diffusers_models_load_alike(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = diffusers_model()
    both(type(model), saved(model, tmp_path, **kwargs))


def test_diffusers_fixes_old_attention_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = diffusers_model()
    file = saved(model, tmp_path) / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in load_file(file).items():
        for new, deprecated in old.items():
            name = name.replace(new, deprecated) if "mid_block" in name else name
        state[name] = tensor
    save_file(state, file, metadata={"format": "pt"})
    both(type(model), tmp_path)


@dataclass(frozen=True)
class WeightOfShape:
    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        return 4 * prod(self.shape)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(4, 4)
        self.b = torch.nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.norm = torch.nn.BatchNorm1d(4)


def stored(state: dict[str, torch.Tensor], path: Path) -> Checkpoint:
    from safetensors.torch import save_file

    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return Checkpoint.open(path)


@pytest.mark.parametrize("absent", ["a.weight", "b.weight", None])
def test_a_tied_weight_may_be_saved_under_any_of_its_names(absent: str | None, tmp_path: Path) -> None:
    module = Tied()
    state = {name: tensor for name, tensor in module.state_dict().items() if name != absent}
    sources = match(module, stored(state, tmp_path / "x.safetensors"))
    assert list(sources) == [name for name in module.state_dict() if name != "b.weight"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"a.weight": None, "b.weight": None}, "missing: a.weight"),
        ({"norm.running_mean": None}, "missing: norm.running_mean"),
        ({"c.weight": torch.zeros(1)}, "unexpected: c.weight"),
        ({f"extra.{i}": torch.zeros(1) for i in range(9)}, "and 4 more"),
        ({"a.bias": torch.zeros(5)}, "a.bias has shape [5], the module's is [4]"),
        ({"a.bias": torch.zeros(4, dtype=torch.half)}, "a.bias is float16, the module's is float32"),
    ],
)
def test_a_checkpoint_that_is_not_the_modules_is_refused_with_the_difference(
    change: dict[str, torch.Tensor | None], told: str, tmp_path: Path
) -> None:
    state = {**Tied().state_dict(), **change}
    checkpoint = stored(
        {name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "x.safetensors"
    )
    with pytest.raises(CheckpointMismatchError) as caught:
        match(Tied(), checkpoint)
    assert told in str(caught.value)


def test_the_base_models_prefix_may_be_added_or_dropped(tmp_path: Path) -> None:
    model = MODELS["bert"]()
    plain = model.state_dict()
    with_prefix = stored({f"bert.{name}": tensor for name, tensor in plain.items()}, tmp_path / "a.safetensors")
    assert set(match(model, with_prefix)) == set(plain)
    headed = MODELS["bert_mlm_tied"]()
    state = {name.removeprefix("bert."): tensor for name, tensor in headed.state_dict().items()}
    sources = match(headed, stored(state, tmp_path / "b.safetensors"))
    assert "bert.embeddings.word_embeddings.weight" in sources


def test_a_mismatch_of_a_transformers_model_names_from_pretrained(tmp_path: Path) -> None:
    model = MODELS["bert"]()
    with pytest.raises(CheckpointMismatchError, match=r"penstock\.from_pretrained\(BertModel"):
        match(model, stored({"x": torch.zeros(1)}, tmp_path / "x.safetensors"))


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
