"""Named tensors in and out: a forward's arguments from a safetensors file, and its outputs into one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from penstock.cache import atomic_write
from penstock.errors import CheckpointError


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, in memory.

    Raises:
        CheckpointError: it is missing, empty, or not a safetensors file.
    """
    try:
        # Not `load_file`: that maps the file, and its pages would count as the model's.
        tensors = safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; name a safetensors file with the inputs") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; its names must be the forward's arguments")
    return tensors


def named_tensors(output: object, name: str = "output") -> dict[str, torch.Tensor]:
    """Every tensor in a forward's output, by field name, with its place in it: `{"hidden_states.3": ...}`.

    Tensors in lists, tuples and mappings are found; other objects, such as key-value caches, are left out.
    """
    return dict(_walk(output, "", name))


def _walk(value: object, path: str, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path or name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, f"{path}.{key}" if path else str(key), name)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{path or name}.{index}", name)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file, whole or not at all.

    Raises:
        OSError: the folder does not exist or is not writable, or the disk is full.
    """
    # Safetensors refuses tensors that share memory, which outputs may.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(plain))
