"""Tensors that know where their bytes lie instead of holding them.

A library's own loading code stacks, concatenates and slices them as it would weights; what comes out says which bytes
of which file make up each parameter. An operation that changes bytes (a cast, a transpose, arithmetic) gives a tensor
that is *lost*: it keeps its shape and dtype and remembers why it cannot be read in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from penstock.checkpoint import FileIdentity, Piece, WeightSource
from penstock.errors import UnsupportedModelError
from penstock.layout import ScatteredError, concatenated, joined, narrowed

_READ_NBYTES = 1 << 20
_aten = torch.ops.aten


@dataclass
class Ledger:
    """What the tensors of one loading share: the files they point into, and what was asked that they cannot do."""

    files: list[FileIdentity] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Provenance:
    """Where a tensor's bytes come from: checkpoint key, pieces, and why they are no longer readable (or None)."""

    ledger: Ledger
    key: str
    pieces: tuple[Piece, ...]
    lost: str | None = None


class ProvenanceTensor(torch.Tensor):
    """A CPU tensor without storage that carries a `Provenance`; to code around it, it is contiguous."""

    provenance: Provenance

    @staticmethod
    def __new__(cls, provenance: Provenance, shape: Sequence[int], dtype: torch.dtype) -> ProvenanceTensor:
        """A tensor of `shape` and `dtype` whose bytes are `provenance.pieces`."""
        tensor: ProvenanceTensor = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=dtype, device=torch.device("cpu")
        )
        tensor.provenance = provenance
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Follow the bytes through `func`, or lose them."""
        handler = _HANDLERS.get(func.overloadpacket)
        result: Any = NotImplemented
        if handler is not None and not any(part.provenance.lost for part in _provenances(args)):
            try:
                result = handler(*args, **(kwargs or {}))
            except ScatteredError:
                return _lose(func, args, kwargs or {}, f"{_name(func)} into too many small pieces")
        return _lose(func, args, kwargs or {}, _name(func)) if result is NotImplemented else result

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        origin = self.provenance
        return f"ProvenanceTensor({origin.key!r}, shape={tuple(self.shape)}, dtype={self.dtype}, lost={origin.lost!r})"


def provenance_tensor(ledger: Ledger, key: str, source: WeightSource) -> ProvenanceTensor:
    """The tensor that stands for `source`, whose pieces index `ledger.files`."""
    return ProvenanceTensor(Provenance(ledger, key, source.pieces), source.shape, getattr(torch, source.dtype))


def source_of(tensor: ProvenanceTensor) -> WeightSource:
    """Where the bytes of a tensor that is not lost are."""
    return WeightSource(dtype_name(tensor.dtype), tuple(tensor.shape), tensor.provenance.pieces)


def dtype_name(dtype: torch.dtype) -> str:
    """Torch's name of `dtype` without its module: `"float32"`."""
    return str(dtype).removeprefix("torch.")


def _name(func: Any) -> str:
    return str(func.overloadpacket).removeprefix("aten.")


def _provenances(args: Any) -> list[ProvenanceTensor]:
    return [leaf for leaf in tree_flatten(args)[0] if isinstance(leaf, ProvenanceTensor)]


def _refuse(ledger: Ledger, message: str) -> UnsupportedModelError:
    ledger.failures.append(message)
    return UnsupportedModelError(message)


def _lose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], why: str) -> Any:
    """The result of `func` in shape and dtype only."""
    first = _provenances((args, kwargs))[0].provenance
    if func._schema.is_mutable:
        raise _refuse(first.ledger, f"checkpoint key {first.key!r} goes through {why} in place")

    def emptied(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf

    try:
        result = func(*tree_map(emptied, args), **tree_map(emptied, kwargs))
    except Exception as error:
        raise _refuse(first.ledger, f"checkpoint key {first.key!r} goes through {why}") from error
    lost = next((part.provenance for part in _provenances(args) if part.provenance.lost), None)
    provenance = lost or replace(first, pieces=(), lost=why)
    if func.overloadpacket is _aten._to_copy and lost is None:
        before, after = (dtype_name(tensor.dtype) for tensor in (args[0], result))
        provenance = replace(provenance, lost=f"a cast from {before} to {after}")
    return tree_map(lambda leaf: _like(provenance, leaf) if isinstance(leaf, torch.Tensor) else leaf, result)


def _like(provenance: Provenance, tensor: torch.Tensor) -> ProvenanceTensor:
    return ProvenanceTensor(provenance, tensor.shape, tensor.dtype)


def _with(tensor: ProvenanceTensor, shape: Sequence[int], pieces: tuple[Piece, ...] | None = None) -> ProvenanceTensor:
    provenance = tensor.provenance if pieces is None else replace(tensor.provenance, pieces=pieces)
    return ProvenanceTensor(provenance, shape, tensor.dtype)


def _same(tensor: ProvenanceTensor, **_: Any) -> ProvenanceTensor:
    return _with(tensor, tensor.shape)


def _to_copy(tensor: ProvenanceTensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
    if dtype not in (None, tensor.dtype) or torch.device(device or "cpu").type != "cpu":
        return NotImplemented
    return _same(tensor)


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
    files = tensor.provenance.ledger.files
    for begin in range(0, nbytes, _READ_NBYTES):
        chunk = bytearray()
        for piece in joined([_span(tensor, begin, min(begin + _READ_NBYTES, nbytes))]):
            descriptor = os.open(files[piece.file].path, os.O_RDONLY)
            try:
                chunk += os.pread(descriptor, piece.nbytes, piece.file_offset)
                os.posix_fadvise(descriptor, piece.file_offset, piece.nbytes, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        yield torch.frombuffer(chunk, dtype=tensor.dtype)


def _span(tensor: ProvenanceTensor, begin: int, end: int) -> tuple[Piece, ...]:
    size = tensor.element_size()
    return narrowed(tensor.provenance.pieces, (tensor.numel(),), 0, begin // size, (end - begin) // size, size)


_HANDLERS: dict[Any, Callable[..., Any]] = {
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
