"""Tiny configurations of many transformers architectures, streamed from their own checkpoints: the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import penstock
from penstock.checkpoint import Checkpoint

from .streaming import counted_memory, equal

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")

Inputs = dict[str, torch.Tensor]
TEXT = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
GROUPED = {**TEXT, "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64}
ENCODER = {**TEXT, "vocab_size": 300, "max_position_embeddings": 64}


def ids(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, 290, (batch, length), generator=torch.Generator().manual_seed(0))


def text() -> Inputs:
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 9:] = 0
    return {"input_ids": ids(), "attention_mask": mask}


def pair() -> Inputs:
    return {"input_ids": ids(), "decoder_input_ids": ids(2, 5)}


def image(size: int = 32) -> Inputs:
    return {"pixel_values": torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))}


def sound(samples: int = 1600) -> Inputs:
    return {"input_values": torch.randn(1, samples, generator=torch.Generator().manual_seed(0))}


def t5(cls: str = "T5ForConditionalGeneration") -> tuple[str, Any]:
    config = transformers.T5Config(
        vocab_size=300, d_model=128, d_kv=32, d_ff=256, num_layers=3, num_heads=4, decoder_start_token_id=0
    )
    return cls, config


def bart() -> tuple[str, Any]:
    size = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 256))}
    config = transformers.BartConfig(
        vocab_size=300,
        d_model=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=64,
        **size,
    )
    return "BartForConditionalGeneration", config


def whisper() -> tuple[str, Any]:
    config = transformers.WhisperConfig(
        vocab_size=300,
        num_mel_bins=16,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_source_positions=50,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return "WhisperForConditionalGeneration", config


def whisper_inputs() -> Inputs:
    features = torch.randn(1, 16, 100, generator=torch.Generator().manual_seed(0))
    return {"input_features": features, "decoder_input_ids": ids(1, 5)}


def clip() -> tuple[str, Any]:
    vision = {**TEXT, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config={**ENCODER, "eos_token_id": 299}, vision_config=vision, projection_dim=128
    )
    return "CLIPModel", config


def detr() -> tuple[str, Any]:
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 64, 128], depths=[1, 1, 1, 1], out_features=["stage4"]
        ),
        d_model=128,
        num_queries=8,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
    )
    return "DetrForObjectDetection", config


def audio(config: type, cls: str) -> tuple[str, Any]:
    return cls, config(
        **TEXT,
        vocab_size=40,
        conv_dim=(64, 64, 64),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )


def moe(**more: Any) -> dict[str, Any]:
    return {**GROUPED, **more}


T = transformers
ARCHITECTURES: dict[str, tuple[Callable[[], tuple[str, Any]], Callable[[], Inputs]]] = {
    # encoders
    "bert": (lambda: ("BertForMaskedLM", T.BertConfig(**ENCODER)), text),
    "roberta": (lambda: ("RobertaModel", T.RobertaConfig(**{**ENCODER, "max_position_embeddings": 70})), text),
    "albert (shared layers)": (
        lambda: ("AlbertModel", T.AlbertConfig(**ENCODER, embedding_size=64, num_hidden_groups=1)),
        text,
    ),
    "distilbert": (
        lambda: ("DistilBertModel", T.DistilBertConfig(vocab_size=300, dim=128, n_layers=3, n_heads=4, hidden_dim=256)),
        text,
    ),
    "deberta-v2": (
        lambda: (
            "DebertaV2Model",
            T.DebertaV2Config(**ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16),
        ),
        text,
    ),
    "electra": (lambda: ("ElectraModel", T.ElectraConfig(**ENCODER, embedding_size=64)), text),
    # decoders
    "gpt2 (tied, Conv1D)": (
        lambda: ("GPT2LMHeadModel", T.GPT2Config(vocab_size=300, n_positions=64, n_embd=128, n_layer=3, n_head=4)),
        text,
    ),
    "llama": (lambda: ("LlamaForCausalLM", T.LlamaConfig(**GROUPED)), text),
    "qwen3 (bf16)": (
        lambda: ("Qwen3ForCausalLM", T.Qwen3Config(**GROUPED, head_dim=32, dtype="bfloat16", tie_word_embeddings=True)),
        text,
    ),
    "gemma": (lambda: ("GemmaForCausalLM", T.GemmaConfig(**GROUPED, head_dim=32)), text),
    "opt": (
        lambda: (
            "OPTForCausalLM",
            T.OPTConfig(
                vocab_size=300,
                hidden_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                ffn_dim=256,
                max_position_embeddings=64,
                word_embed_proj_dim=128,
            ),
        ),
        text,
    ),
    "bloom": (
        lambda: ("BloomForCausalLM", T.BloomConfig(vocab_size=300, hidden_size=128, n_layer=3, n_head=4)),
        text,
    ),
    "falcon": (
        lambda: (
            "FalconForCausalLM",
            T.FalconConfig(vocab_size=300, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, alibi=False),
        ),
        text,
    ),
    "gpt-neox": (lambda: ("GPTNeoXForCausalLM", T.GPTNeoXConfig(**ENCODER)), text),
    "mamba": (
        lambda: ("MambaForCausalLM", T.MambaConfig(vocab_size=300, hidden_size=128, num_hidden_layers=3, state_size=8)),
        lambda: {"input_ids": ids()},
    ),
    # encoder-decoders
    "t5": (t5, pair),
    "bart": (bart, pair),
    "whisper": (whisper, whisper_inputs),
    # vision
    "vit": (
        lambda: ("ViTForImageClassification", T.ViTConfig(**TEXT, image_size=32, patch_size=8)),
        image,
    ),
    "swin": (
        lambda: (
            "SwinModel",
            T.SwinConfig(image_size=32, patch_size=2, embed_dim=64, depths=[1, 1], num_heads=[2, 4], window_size=4),
        ),
        image,
    ),
    "convnext": (
        lambda: ("ConvNextModel", T.ConvNextConfig(hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1])),
        image,
    ),
    "resnet": (
        lambda: (
            "ResNetForImageClassification",
            T.ResNetConfig(embedding_size=32, hidden_sizes=[64, 128, 128, 256], depths=[1, 1, 1, 1]),
        ),
        image,
    ),
    "clip (two towers)": (clip, lambda: {**image(), "input_ids": ids()}),
    "detr": (detr, lambda: image(64)),
    "segformer": (
        lambda: (
            "SegformerForSemanticSegmentation",
            T.SegformerConfig(
                hidden_sizes=[32, 64, 96, 128],
                depths=[1, 1, 1, 1],
                num_attention_heads=[1, 2, 4, 4],
                decoder_hidden_size=128,
            ),
        ),
        lambda: image(64),
    ),
    # mixture of experts
    "mixtral": (
        lambda: ("MixtralForCausalLM", T.MixtralConfig(**moe(num_local_experts=4, num_experts_per_tok=2))),
        text,
    ),
    "qwen3-moe": (
        lambda: (
            "Qwen3MoeForCausalLM",
            T.Qwen3MoeConfig(**moe(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, head_dim=32)),
        ),
        text,
    ),
    # audio
    "wav2vec2": (lambda: audio(T.Wav2Vec2Config, "Wav2Vec2ForCTC"), sound),
    "hubert": (lambda: audio(T.HubertConfig, "HubertModel"), sound),
}


def saved(build: Callable[[], tuple[str, Any]], folder: Path) -> type:
    """Writes the architecture with random weights to `folder`; returns its class."""
    name, config = build()
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    module = cls(config)
    if getattr(config, "dtype", None) is not None:
        module = module.to(config.dtype)
    module.save_pretrained(folder)
    return cls


def tight_budget(cls: type, folder: Path, example: Any, share: float = 0.2) -> int:
    """What a call like `example` needs at least, and `share` of the checkpoint's bytes."""
    with pytest.raises(penstock.BudgetInfeasibleError) as caught:
        penstock.from_pretrained(cls, folder, budget=1, example=example)
    total = sum(source.nbytes for source in Checkpoint.open(folder).tensors.values())
    return caught.value.needed_nbytes + int(share * total)


def plain(output: Any) -> Any:
    """A model's output as dictionaries and tuples of tensors."""
    if isinstance(output, dict):
        return {key: plain(value) for key, value in output.items() if not type(value).__name__.endswith("Cache")}
    return tuple(map(plain, output)) if isinstance(output, list | tuple) else output


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_streamed_is_bit_identical_to_resident(name: str, tmp_path: Path) -> None:
    build, make_inputs = ARCHITECTURES[name]
    cls, inputs = saved(build, tmp_path), make_inputs()
    resident: nn.Module = cls.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = plain(resident(**inputs))
    streamed = penstock.from_pretrained(cls, tmp_path, budget=tight_budget(cls, tmp_path, inputs), example=inputs)
    streamed.eval()
    with torch.inference_mode():
        found = [plain(streamed(**inputs)) for _ in range(3)]
    handle = penstock.inspect(streamed)
    assert handle.plan.loads, "everything was resident"
    penstock.restore(streamed)
    assert [equal(one, expected) for one in found] == [True] * 3


@pytest.mark.parametrize("name", ["gpt2 (tied, Conv1D)", "qwen3 (bf16)", "t5", "bart"])
def test_generation_gives_the_same_tokens_and_scores(name: str, tmp_path: Path) -> None:
    build, _ = ARCHITECTURES[name]
    cls = saved(build, tmp_path)
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_scores": True,
        "return_dict_in_generate": True,
        "pad_token_id": 0,
    }
    resident = cls.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = resident.generate(ids(), **settings)
    # Room for a cache that grows: nothing is said about the calls to come.
    call = pair() if name in ("t5", "bart") else text()
    budget = tight_budget(cls, tmp_path, call)
    streamed = penstock.from_pretrained(cls, tmp_path, budget=budget + (256 << 10)).eval()
    with torch.inference_mode():
        found = [streamed.generate(ids(), **settings) for _ in range(2)]
    assert penstock.inspect(streamed).plan.loads, "everything was resident"
    penstock.restore(streamed)
    for one in found:
        assert torch.equal(one.sequences, expected.sequences)
        assert equal(list(one.scores), list(expected.scores))


def test_a_unet_of_diffusers_streams(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=8,
    ).save_pretrained(tmp_path)
    inputs = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor(3),
        "encoder_hidden_states": torch.randn(1, 5, 64),
    }
    cls = diffusers.UNet2DConditionModel
    with torch.inference_mode():
        expected = cls.from_pretrained(tmp_path).eval()(**inputs).sample
    budget = tight_budget(cls, tmp_path, inputs)
    streamed = penstock.from_pretrained(cls, tmp_path, budget=budget, example=inputs).eval()
    with torch.inference_mode():
        found = [streamed(**inputs).sample for _ in range(3)]
    assert penstock.inspect(streamed).plan.loads, "everything was resident"
    penstock.restore(streamed)
    assert [torch.equal(one, expected) for one in found] == [True] * 3
