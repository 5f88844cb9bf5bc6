"""What provenance tensors know about each operator: reshapes, copies, slices and concatenations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from penstock.checkpoint import Piece
from penstock.layout import concatenated, narrowed
from penstock.provenance import HANDLERS, ProvenanceTensor

_READ_NBYTES = 1 << 20
_aten = torch.ops.aten


def _with(tensor: ProvenanceTensor, shape: Sequence[int], pieces: tuple[Piece, ...] | None = None) -> ProvenanceTensor:
    provenance = tensor.provenance if pieces is None else replace(tensor.provenance, pieces=pieces)
    return ProvenanceTensor(provenance, shape, tensor.dtype)


def _same(tensor: ProvenanceTensor, **_: Any) -> ProvenanceTensor:
    return _with(tensor, tensor.shape)


def _to_copy(tensor: ProvenanceTensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
    if torch.device(device or "cpu").type != "cpu":
        return NotImplemented
    return _same(tensor) if dtype in (None, tensor.dtype) else _cast(tensor, dtype)


def _cast(tensor: ProvenanceTensor, dtype: torch.dtype) -> Any:
    """A cast of a whole checkpoint tensor, where that can be done while the checkpoint is written anew."""
    casts, pieces = tensor.provenance.ledger.casts, tensor.provenance.pieces
    nbytes = tensor.numel() * tensor.element_size()
    if casts is None or len(pieces) != 1 or pieces[0].file_offset or pieces[0].nbytes != nbytes:
        return NotImplemented
    if casts.setdefault(pieces[0].file, dtype) != dtype:
        return NotImplemented
    whole = replace(pieces[0], nbytes=tensor.numel() * dtype.itemsize)
    return ProvenanceTensor(replace(tensor.provenance, pieces=(whole,)), tensor.shape, dtype)


def _view(tensor: ProvenanceTensor, shape: Sequence[int]) -> ProvenanceTensor:
    known = prod(size for size in shape if size != -1)
    return _with(tensor, [tensor.numel() // known if size == -1 else size for size in shape])


def _unsqueeze(tensor: ProvenanceTensor, dim: int) -> ProvenanceTensor:
    shape = list(tensor.shape)
    shape.insert(dim % (tensor.dim() + 1), 1)
    return _with(tensor, shape)


def _squeeze(tensor: ProvenanceTensor, dim: int | Sequence[int] | None = None) -> ProvenanceTensor:
    dims = range(tensor.dim()) if dim is None else (dim,) if isinstance(dim, int) else dim
    gone = {d % tensor.dim() for d in dims if tensor.dim()}
    return _with(tensor, [size for d, size in enumerate(tensor.shape) if size != 1 or d not in gone])


def _permute(tensor: ProvenanceTensor, dims: Sequence[int]) -> Any:
    order = [d % tensor.dim() for d in dims]
    moving = [d for d in order if tensor.shape[d] != 1]
    if moving != sorted(moving):
        return NotImplemented
    return _with(tensor, [tensor.shape[d] for d in order])


def _transpose(tensor: ProvenanceTensor, dim0: int = 0, dim1: int = 1) -> Any:
    if tensor.dim() < 2:
        return _same(tensor)
    order = list(range(tensor.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(tensor, order)


def _expand(tensor: ProvenanceTensor, shape: Sequence[int], **_: Any) -> Any:
    sizes = [size if size != -1 else tensor.shape[d - len(shape)] for d, size in enumerate(shape)]
    return _with(tensor, sizes) if prod(sizes) == tensor.numel() else NotImplemented


def _narrow(tensor: ProvenanceTensor, dim: int, start: int, length: int) -> ProvenanceTensor:
    shape = list(tensor.shape)
    pieces = narrowed(tensor.provenance.pieces, tuple(shape), dim, start, length, tensor.element_size())
    shape[dim] = length
    return _with(tensor, shape, pieces)


def _slice(
    tensor: ProvenanceTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    if step != 1:
        return NotImplemented
    dim %= tensor.dim()
    begin, stop, _ = slice(start, end).indices(tensor.shape[dim])
    return _narrow(tensor, dim, begin, max(stop - begin, 0))


def _select(tensor: ProvenanceTensor, dim: int, index: int) -> ProvenanceTensor:
    dim %= tensor.dim()
    part = _narrow(tensor, dim, index % tensor.shape[dim], 1)
    return _with(part, [*part.shape[:dim], *part.shape[dim + 1 :]])


def _split(tensor: ProvenanceTensor, size: int | Sequence[int], dim: int = 0) -> list[ProvenanceTensor]:
    dim %= tensor.dim()
    total = tensor.shape[dim]
    sizes = [min(size, total - begin) for begin in range(0, total, size)] if isinstance(size, int) else size
    parts, begin = [], 0
    for length in sizes:
        parts.append(_narrow(tensor, dim, begin, length))
        begin += length
    return parts


def _unbind(tensor: ProvenanceTensor, dim: int = 0) -> list[ProvenanceTensor]:
    return [_select(tensor, dim, index) for index in range(tensor.shape[dim])]


def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> Any:
    parts = [tensor for tensor in tensors if isinstance(tensor, ProvenanceTensor)]
    first = parts[0]
    if len(parts) != len(tensors) or any(part.dtype != first.dtype or part.dim() != first.dim() for part in parts):
        return NotImplemented
    dim %= first.dim()
    weights = [(part.provenance.pieces, tuple(part.shape)) for part in parts]
    shape = [*first.shape[:dim], sum(part.shape[dim] for part in parts), *first.shape[dim + 1 :]]
    return _with(first, shape, concatenated(weights, dim, first.element_size()))


def _stack(tensors: Sequence[torch.Tensor], dim: int = 0) -> Any:
    if not all(isinstance(tensor, ProvenanceTensor) for tensor in tensors):
        return NotImplemented
    return _cat([_unsqueeze(tensor, dim) for tensor in tensors], dim)  # type: ignore[arg-type]


def _pad(tensor: ProvenanceTensor, pad: Sequence[int], value: float = 0) -> Any:
    return NotImplemented if any(pad) else _same(tensor)


def _equal(left: torch.Tensor, right: torch.Tensor) -> Any:
    """The one question about values: libraries ask it before they tie two weights."""
    if not isinstance(left, ProvenanceTensor) or not isinstance(right, ProvenanceTensor):
        return NotImplemented
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return all(torch.equal(*pair) for pair in zip(_chunks(left), _chunks(right), strict=True))


def _chunks(tensor: ProvenanceTensor) -> Iterator[torch.Tensor]:
    """The weight's elements from its files, a little at a time."""
    nbytes = tensor.numel() * tensor.element_size()
    for begin in range(0, nbytes, _READ_NBYTES):
        chunk = bytearray()
        for piece in _span(tensor, begin, min(begin + _READ_NBYTES, nbytes)):
            chunk += tensor.provenance.ledger.read(piece)
        yield torch.frombuffer(chunk, dtype=tensor.dtype)


def _span(tensor: ProvenanceTensor, begin: int, end: int) -> tuple[Piece, ...]:
    size = tensor.element_size()
    return narrowed(tensor.provenance.pieces, (tensor.numel(),), 0, begin // size, (end - begin) // size, size)


HANDLERS |= {
    _aten.alias: _same,
    _aten.detach: _same,
    _aten.clone: _same,
    _aten._to_copy: _to_copy,
    _aten.view: _view,
    _aten._unsafe_view: _view,
    _aten._reshape_alias: lambda tensor, shape, stride: _view(tensor, shape),
    _aten.unsqueeze: _unsqueeze,
    _aten.squeeze: _squeeze,
    _aten.t: _transpose,
    _aten.transpose: _transpose,
    _aten.permute: _permute,
    _aten.expand: _expand,
    _aten.slice: _slice,
    _aten.select: _select,
    _aten.split: _split,
    _aten.split_with_sizes: _split,
    _aten.unbind: _unbind,
    _aten.cat: _cat,
    _aten.stack: _stack,
    _aten.constant_pad_nd: _pad,
    _aten.equal: _equal,
}
