"""The benchmark's models: the shapes of well-known ones with random weights, written once into the cache folder.

Each has a tiny twin of the same class: running it warms up a process before its baseline is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.model import Model

TOKENS = 128
_MEL_BINS, _FRAMES_PER_STATE = 80, 2
_TEXT_STATES = 77
_WHISPER = "transformers.models.whisper.modeling_whisper"
_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def _image(config: Mapping[str, Any], batch: int, generator: torch.Generator) -> dict[str, Any]:
    size = config.get("image_size", 224)
    return {"pixel_values": torch.randn(batch, 3, size, size, generator=generator)}


def _depth_image(config: Mapping[str, Any], batch: int, generator: torch.Generator) -> dict[str, Any]:
    return _image(config["backbone_config"], batch, generator)


def _token_row(config: Mapping[str, Any], batch: int, generator: torch.Generator) -> dict[str, Any]:
    return {"input_ids": torch.randint(10, config["vocab_size"], (batch, TOKENS), generator=generator)}


def _one_token(config: Mapping[str, Any], batch: int, generator: torch.Generator) -> dict[str, Any]:
    return {"input_ids": torch.randint(10, config["vocab_size"], (batch, 1), generator=generator)}


def _speech(config: Mapping[str, Any], batch: int, generator: torch.Generator) -> dict[str, Any]:
    frames = _FRAMES_PER_STATE * config["max_source_positions"]
    return {"input_features": torch.randn(batch, _MEL_BINS, frames, generator=generator)}


def _latents(config: Mapping[str, Any], batch: int, generator: torch.Generator) -> dict[str, Any]:
    size, width = config["sample_size"], config["cross_attention_dim"]
    return {
        "sample": torch.randn(batch, 4, size, size, generator=generator),
        "encoder_hidden_states": torch.randn(batch, _TEXT_STATES, width, generator=generator),
    }


def _transformer(layers: int, hidden: int, heads: int, intermediate: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        **more,
    }


def _resnet(name: str, title: str, depths: list[int]) -> Model:
    return Model(
        name,
        title,
        "transformers",
        "ResNetForImageClassification",
        "ResNetConfig",
        {"depths": depths, "layer_type": "bottleneck", "num_labels": 1000},
        {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 32, 32, 32], "embedding_size": 32, "num_labels": 8},
        _image,
        block_modules=("resnet", "encoder", "stages", "0", "1", "2", "3"),
    )


def _vgg(name: str, title: str, depths: tuple[int, ...]) -> Model:
    return Model(
        name,
        title,
        "benchmarks.vgg",
        "VGG",
        "VGGConfig",
        {"depths": depths, "image_size": 224},
        {"widths": (8, 8, 8, 8, 8), "hidden": 64, "classes": 8, "image_size": 64},
        _image,
    )


_OF_RUN = (
    _resnet("resnet152", "ResNet-152", [3, 8, 36, 3]),
    Model(
        "vit-large",
        "ViT-L/16",
        "transformers",
        "ViTForImageClassification",
        "ViTConfig",
        _transformer(24, 1024, 16, 4096, image_size=224, num_labels=1000),
        {**_TINY, "num_labels": 8, "image_size": 64},
        _image,
        block_modules=("vit",),
    ),
    Model(
        "bert-large",
        "BERT-L",
        "transformers",
        "BertModel",
        "BertConfig",
        _transformer(24, 1024, 16, 4096, vocab_size=30522),
        {**_TINY, "vocab_size": 512},
        _token_row,
        block_modules=("encoder",),
    ),
    Model(
        "gpt2-medium",
        "GPT-2-M",
        "transformers",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 50257},
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 512},
        _token_row,
        {"use_cache": False},
        ("transformer",),
    ),
    _vgg("vgg16", "VGG-16", (2, 2, 3, 3, 3)),
    Model(
        "qwen3-0.6b",
        "Qwen3-0.6B (bf16)",
        "transformers",
        "Qwen3ForCausalLM",
        "Qwen3Config",
        _transformer(
            28,
            1024,
            16,
            3072,
            vocab_size=151936,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            tie_word_embeddings=True,
            dtype="bfloat16",
        ),
        {**_TINY, "vocab_size": 512, "num_key_value_heads": 1, "head_dim": 16},
        _token_row,
        {"use_cache": False},
        ("model",),
    ),
)
_OF_STRATEGIES = (
    _resnet("resnet101", "ResNet-101", [3, 4, 23, 3]),
    _vgg("vgg19", "VGG-19", (2, 2, 4, 4, 4)),
    Model(
        "densenet201",
        "DenseNet-201",
        "benchmarks.vision",
        "DenseNet",
        "DenseNetConfig",
        {"blocks": (6, 12, 48, 32)},
        {"blocks": (2, 2, 2, 2), "growth": 8, "stem": 16, "classes": 8, "image_size": 64},
        _image,
    ),
    Model(
        "cspdarknet53",
        "CSPDarknet-53",
        "benchmarks.vision",
        "CSPDarknet",
        "CSPDarknetConfig",
        {"stages": (1, 2, 8, 8, 4), "image_size": 416},
        {"stages": (1, 1, 1, 1, 1), "stem": 8, "image_size": 64},
        _image,
    ),
    Model(
        "whisper-medium-encoder",
        "Whisper-M encoder",
        _WHISPER,
        "WhisperEncoder",
        "WhisperConfig",
        {
            "d_model": 1024,
            "encoder_layers": 24,
            "encoder_attention_heads": 16,
            "encoder_ffn_dim": 4096,
            "num_mel_bins": _MEL_BINS,
            "max_source_positions": 1500,  # 30 s
        },
        {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "max_source_positions": 20,
        },
        _speech,
    ),
    Model(
        "depth-anything-large",
        "Depth-Anything-L",
        "transformers",
        "DepthAnythingForDepthEstimation",
        "DepthAnythingConfig",
        {
            "backbone_config": {
                "model_type": "dinov2",
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 518,
                "patch_size": 14,
                "out_features": ["stage5", "stage12", "stage18", "stage24"],
                "reshape_hidden_states": False,
            },
            "reassemble_hidden_size": 1024,
            "neck_hidden_sizes": [256, 512, 1024, 1024],
            "fusion_hidden_size": 256,
        },
        {
            "backbone_config": {
                "model_type": "dinov2",
                "hidden_size": 32,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
                "reshape_hidden_states": False,
            },
            "reassemble_hidden_size": 32,
            "neck_hidden_sizes": [16, 16, 16, 16],
            "fusion_hidden_size": 16,
            "head_hidden_size": 8,
        },
        _depth_image,
    ),
    Model(
        "sd15-unet",
        "SD 1.5 UNet",
        "diffusers",
        "UNet2DConditionModel",
        None,
        {"sample_size": 64, "cross_attention_dim": 768},
        {
            "sample_size": 8,
            "cross_attention_dim": 32,
            "block_out_channels": (32, 32, 32, 32),
            "attention_head_dim": 2,
            "norm_num_groups": 8,
            "layers_per_block": 1,
        },
        _latents,
        {"timestep": 500},
    ),
)
MODELS = {model.name: model for model in (*_OF_RUN, *_OF_STRATEGIES)}
"""All of them: the comparison of strategies."""

RUN = tuple(model.name for model in _OF_RUN)
"""Those of the other tables."""

LLAMA_70B = Model(
    "llama-70b",
    f"70B decoder, {TOKENS} tokens",
    "transformers",
    "LlamaForCausalLM",
    "LlamaConfig",
    _transformer(80, 8192, 64, 28672, vocab_size=128256, num_key_value_heads=8, head_dim=128, dtype="bfloat16"),
    {**_TINY, "vocab_size": 512, "num_key_value_heads": 1, "head_dim": 16},
    _token_row,
    {"use_cache": False},
)
LLAMA_70B_TOKEN = replace(LLAMA_70B, name="llama-70b-token", title="70B decoder, one token", inputs_of=_one_token)
"""Only to plan for: their weights are nowhere."""


def find(name: str, *, tiny: bool = False) -> Model:
    """The model called `name`, or its tiny twin.

    Raises:
        ValueError: there is none.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}: choose from {', '.join(MODELS)}")
    return MODELS[name].small() if tiny else MODELS[name]
