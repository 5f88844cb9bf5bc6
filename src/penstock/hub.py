"""Transformers and diffusers models without their weights, and where each weight's bytes are.

The library's own `from_pretrained` does all the work: configuration, renames, prefixes, ties, conversions,
initialisation of what the checkpoint lacks. Only its file opener is replaced, by one that hands out tensors which
carry their provenance instead of bytes (`provenance.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from penstock.checkpoint import Checkpoint, WeightSource
from penstock.errors import CheckpointMismatchError
from penstock.matching import match
from penstock.opener import Opener, not_in_place
from penstock.provenance import ProvenanceTensor, source_of

__all__ = ["Skeleton", "load_skeleton", "match"]

MAX_SMALL_PIECES = 64
SMALL_PIECE_NBYTES = 16384


@dataclass(frozen=True)
class Skeleton:
    """A model whose checkpoint weights are on the meta device.

    `sources` says, by a tensor's first name in the state dict, which bytes of `checkpoint` it is made of. What the
    checkpoint does not hold (parameters that the library initialised, buffers that are not saved) is real.
    """

    module: torch.nn.Module
    checkpoint: Checkpoint
    sources: dict[str, WeightSource]


def load_skeleton(
    cls: type, path: str | os.PathLike[str], *, max_initialized_nbytes: int | None = None, **kwargs: Any
) -> Skeleton:
    """The model that `cls.from_pretrained(path, **kwargs)` would load, without its weights' bytes.

    `cls` is a transformers or diffusers model class, an Auto class too; `path` a local folder. Weights that the
    checkpoint lacks are initialised by the library, up to `max_initialized_nbytes`.

    Raises:
        CheckpointError: the folder is missing, damaged, holds pickles, or is no model folder.
        CheckpointMismatchError: shapes differ from the configuration's, or too much is missing.
        UnsupportedModelError: another kind of class, or a weight that needs a conversion (names `penstock pack`).
    """
    opener = Opener(cls, path, max_initialized_nbytes=max_initialized_nbytes, **kwargs)
    module = opener.load()
    return Skeleton(module, opener.checkpoint(), _settle(opener.folder, module))


def _settle(folder: Path, module: torch.nn.Module) -> dict[str, WeightSource]:
    """Put plain meta tensors in the place of provenance tensors, the same one wherever one was; their sources."""
    plain: dict[int, torch.Tensor] = {}
    kept: list[torch.Tensor] = []  # alive until the end, so that no id is used twice
    sources: dict[str, WeightSource] = {}
    problems = []
    for name, table, key in slots(module):
        tensor = table[key]
        if not isinstance(tensor, ProvenanceTensor):
            if tensor is not None and tensor.is_meta and id(tensor) not in plain:
                raise CheckpointMismatchError(f"{folder}: {name} is missing: give this class's own checkpoint")
            continue
        if id(tensor) not in plain:
            problem = problem_of(tensor)
            if problem:
                problems.append(f"{name} {problem}")
            plain[id(tensor)] = _plain(tensor)
            kept += [tensor, plain[id(tensor)]]
            plain[id(plain[id(tensor)])] = plain[id(tensor)]
            sources[name] = source_of(tensor)
        table[key] = plain[id(tensor)]
    if problems:
        raise not_in_place(folder, problems)
    return sources


def slots(module: torch.nn.Module) -> Iterator[tuple[str, dict[str, torch.Tensor | None], str]]:
    """Each place that holds a parameter or buffer, in state-dict order: its name, its table and its key there."""
    for prefix, part in module.named_modules():
        for table in (part._parameters, part._buffers):
            for key in list(table):
                yield f"{prefix}.{key}" if prefix else key, table, key


def problem_of(tensor: ProvenanceTensor) -> str | None:
    """Why `tensor` cannot be read in place, or None."""
    origin = tensor.provenance
    if origin.lost:
        return f"needs {origin.lost} of checkpoint key {origin.key!r}"
    nbytes = sum(piece.nbytes for piece in origin.pieces)
    if nbytes != tensor.numel() * tensor.element_size():
        return f"was resized from checkpoint key {origin.key!r}"
    if len(origin.pieces) > MAX_SMALL_PIECES and nbytes // len(origin.pieces) < SMALL_PIECE_NBYTES:
        return f"lies in {len(origin.pieces)} pieces of {nbytes // len(origin.pieces)} bytes"
    return None


def _plain(tensor: ProvenanceTensor) -> torch.Tensor:
    """The meta tensor or parameter that stands for `tensor`, with what the library noted on it."""
    plain = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, torch.nn.Parameter):
        plain = torch.nn.Parameter(plain, requires_grad=tensor.requires_grad)
    plain.__dict__.update(
        {name: value for name, value in vars(tensor).items() if name not in ("provenance", "_is_param")}
    )
    return plain
