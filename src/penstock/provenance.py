"""Tensors that know where their bytes lie instead of holding them.

A library's own loading code stacks, concatenates and slices them as it would weights; what comes out says which bytes
of which file make up each parameter. An operation that changes bytes (a cast, a transpose, arithmetic) gives a tensor
that is *lost*: it keeps its shape and dtype and remembers why it cannot be read in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from penstock.checkpoint import FileIdentity, Piece, WeightSource
from penstock.errors import UnsupportedModelError
from penstock.layout import ScatteredError

HANDLERS: dict[Any, Callable[..., Any]] = {}
"""Aten operator -> the function that follows bytes through it; `provenance_ops.py` fills it."""


@dataclass
class Ledger:
    """What the tensors of one loading share.

    `files` are what their pieces point into, `failures` what was asked that they cannot do. Where `casts` is a dict,
    a piece's file is the number of a checkpoint tensor instead, which may be cast as a whole: `casts` notes to what.
    """

    files: list[FileIdentity] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    casts: dict[int, torch.dtype] | None = None

    def read(self, piece: Piece) -> bytes:
        """The bytes of `piece`, not left in the page cache."""
        descriptor = os.open(self.files[piece.file].path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, piece.nbytes, piece.file_offset)
            os.posix_fadvise(descriptor, piece.file_offset, piece.nbytes, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        return data


@dataclass(frozen=True)
class Recipe:
    """How a lost tensor would be computed: output number `output` of `func(*args, **kwargs)`."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: int


@dataclass(frozen=True)
class Provenance:
    """Where a tensor's bytes come from: checkpoint key and pieces, or why they are lost and what to compute."""

    ledger: Ledger
    key: str
    pieces: tuple[Piece, ...]
    lost: str | None = None
    recipe: Recipe | None = None


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
        handler = HANDLERS.get(func.overloadpacket)
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
        if _is_temporary(args[0]) and "out" not in kwargs:
            args[0].provenance = replace(args[0].provenance, lost=f"{why} in place", recipe=None)
            return args[0]
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
    if func.overloadpacket is torch.ops.aten._to_copy:
        why = f"a cast from {dtype_name(args[0].dtype)} to {dtype_name(result.dtype)}"
    leaves, structure = tree_flatten(result)
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            recipe = Recipe(func, args, kwargs, number)
            provenance = replace(lost or first, pieces=(), lost=lost.lost if lost else why, recipe=recipe)
            leaves[number] = ProvenanceTensor(provenance, leaf.shape, leaf.dtype)
    return tree_unflatten(leaves, structure)


def _is_temporary(tensor: Any) -> bool:
    """Whether writing to `tensor` changes no weight: it was computed (a parametrized weight, say), and is no view."""
    if not isinstance(tensor, ProvenanceTensor) or isinstance(tensor, torch.nn.Parameter):
        return False
    recipe = tensor.provenance.recipe
    return recipe is not None and not any(result.alias_info for result in recipe.func._schema.returns)


def compute(tensor: ProvenanceTensor, read: Callable[[ProvenanceTensor], torch.Tensor]) -> torch.Tensor:
    """The real tensor that `tensor` stands for, contiguous; `read` gets those that are not lost."""
    recipe = tensor.provenance.recipe
    if recipe is None and tensor.provenance.lost:
        raise UnsupportedModelError(f"checkpoint key {tensor.provenance.key!r} goes through {tensor.provenance.lost}")
    if recipe is None:
        return read(tensor)

    def computed(leaf: Any) -> Any:
        return compute(leaf, read) if isinstance(leaf, ProvenanceTensor) else leaf

    result = recipe.func(*tree_map(computed, recipe.args), **tree_map(computed, recipe.kwargs))
    output: torch.Tensor = tree_flatten(result)[0][recipe.output]
    return output.contiguous()  # a provenance tensor always passes for contiguous


def keys_of(tensor: ProvenanceTensor) -> set[int]:
    """The files (or checkpoint tensors) whose bytes `tensor` needs."""
    recipe = tensor.provenance.recipe
    if recipe is None:
        return {piece.file for piece in tensor.provenance.pieces}
    return set().union(*(keys_of(part) for part in _provenances((recipe.args, recipe.kwargs))))
