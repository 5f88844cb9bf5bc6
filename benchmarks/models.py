"""The benchmark's models: the shapes of six well-known ones with random weights, written once into the cache folder.

Each has a tiny twin of the same class: running it warms up a process before its baseline is taken.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.vgg import VGG, VGGConfig
from penstock.cache import cache_dir
from penstock.checkpoint import Checkpoint

SEED = 0
TOKENS = 128
_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@dataclass(frozen=True)
class Model:
    """One model of the benchmark.

    Attributes:
        name: as on the command line.
        title: as in tables.
        class_name: its class in transformers; None for our own VGG.
        config_name: its configuration class there.
        config: arguments of that class.
        tiny: arguments that differ in its tiny twin.
        extra: arguments of each call besides the input.
        block_modules: what diffusers' block-level offloading has to look into to find the model's blocks.
    """

    name: str
    title: str
    class_name: str | None
    config_name: str
    config: Mapping[str, Any]
    tiny: Mapping[str, Any]
    extra: Mapping[str, Any]
    block_modules: tuple[str, ...]
    is_tiny: bool = False

    @property
    def folder(self) -> Path:
        """Where its checkpoint and what rivals make of it lie."""
        return root() / (f"{self.name}-tiny" if self.is_tiny else self.name)

    @property
    def checkpoint(self) -> Path:
        """A folder in the Hub's layout, with one `model.safetensors`."""
        return self.folder / "checkpoint"

    @property
    def weights_file(self) -> Path:
        """The safetensors file."""
        return self.checkpoint / "model.safetensors"

    def weights_nbytes(self) -> int:
        """Bytes of all its weights, as in the checkpoint."""
        return sum(source.nbytes for source in Checkpoint.open(self.weights_file).tensors.values())

    def small(self) -> Model:
        """The tiny twin."""
        return replace(self, config={**self.config, **self.tiny}, is_tiny=True)

    def load_class(self) -> Any:
        """The model's class."""
        if self.class_name is None:
            return VGG
        import transformers

        return getattr(transformers, self.class_name)

    def make_config(self) -> Any:
        """The configuration object."""
        if self.class_name is None:
            return VGGConfig(**self.config)
        import transformers

        return getattr(transformers, self.config_name)(**self.config)

    def build(self) -> nn.Module:
        """A new module with weights as its class makes them, in evaluation mode."""
        cls, config = self.load_class(), self.make_config()
        module: nn.Module = cls(config) if self.class_name is None else cls._from_config(config)
        return module.eval()

    def inputs(self) -> dict[str, Any]:
        """The arguments of every call: one image, or one row of 128 tokens."""
        generator = torch.Generator().manual_seed(SEED)
        if "vocab_size" in self.config:
            ids = torch.randint(10, self.config["vocab_size"], (1, TOKENS), generator=generator)
            return {"input_ids": ids, **self.extra}
        size = self.config.get("image_size", 224)
        return {"pixel_values": torch.randn(1, 3, size, size, generator=generator), **self.extra}


def _transformer(layers: int, hidden: int, heads: int, intermediate: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        **more,
    }


MODELS = {
    model.name: model
    for model in (
        Model(
            "resnet152",
            "ResNet-152",
            "ResNetForImageClassification",
            "ResNetConfig",
            {"depths": [3, 8, 36, 3], "layer_type": "bottleneck", "num_labels": 1000},
            {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 32, 32, 32], "embedding_size": 32, "num_labels": 8},
            {},
            ("resnet", "encoder", "stages", "0", "1", "2", "3"),
        ),
        Model(
            "vit-large",
            "ViT-L/16",
            "ViTForImageClassification",
            "ViTConfig",
            _transformer(24, 1024, 16, 4096, image_size=224, num_labels=1000),
            {**_TINY, "num_labels": 8, "image_size": 64},
            {},
            ("vit",),
        ),
        Model(
            "bert-large",
            "BERT-L",
            "BertModel",
            "BertConfig",
            _transformer(24, 1024, 16, 4096, vocab_size=30522),
            {**_TINY, "vocab_size": 512},
            {},
            ("encoder",),
        ),
        Model(
            "gpt2-medium",
            "GPT-2-M",
            "GPT2LMHeadModel",
            "GPT2Config",
            {"n_embd": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 50257},
            {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 512},
            {"use_cache": False},
            ("transformer",),
        ),
        Model(
            "vgg16",
            "VGG-16",
            None,
            "VGGConfig",
            {"image_size": 224},
            {"widths": (8, 8, 8, 8, 8), "hidden": 64, "classes": 8, "image_size": 64},
            {},
            (),
        ),
        Model(
            "qwen3-0.6b",
            "Qwen3-0.6B (bf16)",
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
            {"use_cache": False},
            ("model",),
        ),
    )
}


def root() -> Path:
    """The benchmark's part of the cache folder."""
    named = os.environ.get("PENSTOCK_BENCHMARKS")
    return Path(named) if named else cache_dir() / "benchmarks"


def find(name: str, *, tiny: bool = False) -> Model:
    """The model called `name`, or its tiny twin.

    Raises:
        ValueError: there is none.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}: choose from {', '.join(MODELS)}")
    return MODELS[name].small() if tiny else MODELS[name]


def write_checkpoint(model: Model) -> None:
    """Writes the checkpoint unless it is there: whole or not at all, on the disk, and not in the page cache."""
    if model.checkpoint.is_dir():
        return
    partial = model.folder / "checkpoint.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.manual_seed(SEED)
    module = model.build()
    if model.class_name is None:
        from safetensors.torch import save_file

        save_file(module.state_dict(), partial / "model.safetensors")
    else:
        # Names as in the module, so that arms which know of no renaming read the same file.
        module.save_pretrained(partial, max_shard_size="100GB", save_original_format=False)  # type: ignore[operator]
    flush(partial)
    partial.rename(model.checkpoint)


def flush(folder: Path) -> None:
    """Brings every file below `folder` to the disk and out of the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
