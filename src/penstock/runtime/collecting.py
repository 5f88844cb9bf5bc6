"""The weights of a module that stream, and what can be done with each: rows looked up, slices computed with."""

from __future__ import annotations

import torch
from torch import nn

from penstock.checkpoint import WeightSource
from penstock.runtime.binding import BoundWeight, torch_dtype
from penstock.runtime.devices.base import ALIGNMENT_NBYTES
from penstock.runtime.requests import coalesced
from penstock.runtime.slices import sliceable_rows

SMALL_TABLE_NBYTES = 32 << 10
"""Tables up to this are loaded whole: a few reads of rows would take longer."""


def collect_weights(
    module: nn.Module, sources: dict[str, WeightSource], device: torch.device, *, keeps_layout: bool = False
) -> list[BoundWeight]:
    """The parameters of `module` that `sources` names, each once, in registration order.

    With `keeps_layout`, the sources hold the bytes of the module's own parameters in the order of its memory.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    found: dict[int, tuple[str, nn.Parameter]] = {}
    source_of: dict[int, WeightSource] = {}
    lookups: dict[int, set[str]] = {}
    slicers: dict[int, dict[str, int]] = {}
    for prefix, owner in module.named_modules():
        for attribute, parameter in owner._parameters.items():
            if parameter is None:
                continue
            name = f"{prefix}.{attribute}" if prefix else attribute
            owners.setdefault(id(parameter), []).append((owner, attribute))
            found.setdefault(id(parameter), (name, parameter))
            if name in sources:
                source_of.setdefault(id(parameter), sources[name])
            if isinstance(owner, nn.Embedding) and owner.max_norm is None:  # which would write to the table
                lookups.setdefault(id(parameter), set()).add(prefix)
            if (rows := sliceable_rows(owner, attribute, tuple(parameter.shape))) > 1:
                slicers.setdefault(id(parameter), {})[prefix] = rows
    weights = []
    for key, (name, parameter) in found.items():
        if (source := source_of.get(key)) is None:
            continue
        stride = dense_stride(parameter) if keeps_layout else None
        rows, slice_paths = _slices(source, stride, slicers.get(key, {}))
        weights.append(
            BoundWeight(
                name,
                parameter,
                tuple(owners[key]),
                source,
                device,
                _is_aligned(parameter, source),
                frozenset(lookups.get(key, ())) if _has_rows(source) else frozenset(),
                stride,
                rows,
                slice_paths,
            )
        )
    return weights


def dense_stride(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The strides of a tensor whose bytes lie without a gap, but not in the order of its dimensions; else None."""
    if tensor.is_contiguous():
        return None
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1:
            if stride != expected:
                return None
            expected *= size
    return tuple(tensor.stride())


def _is_aligned(parameter: nn.Parameter, source: WeightSource) -> bool:
    if not parameter.is_meta:
        return parameter.data_ptr() % ALIGNMENT_NBYTES == 0
    # What is assembled from pieces, or cannot be used where it lies, is copied by whoever loads it.
    return len(source.pieces) > 1 or any(p.file_offset % torch_dtype(source.dtype).itemsize for p in source.pieces)


def _has_rows(source: WeightSource) -> bool:
    return len(source.pieces) == 1 and len(source.shape) == 2 and source.nbytes > SMALL_TABLE_NBYTES


def _slices(
    source: WeightSource, stride: tuple[int, ...] | None, slicers: dict[str, int]
) -> tuple[int, frozenset[str]]:
    """The rows of a weight and the layers that can be computed row by row; they have to agree, its bytes to be one."""
    if stride is not None or len(coalesced(source.pieces)) != 1 or len(set(slicers.values())) != 1:
        return 1, frozenset()
    return next(iter(slicers.values())), frozenset(slicers)
