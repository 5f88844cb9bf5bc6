"""What an activation was computed from, so that it can be computed again instead of being brought back.

Only operations that give the same bits again: without chance, and element by element or row by row, so that neither
addresses nor threads matter. What they read has to be in memory anyway: what autograd saved and keeps for longer, what
outlives the iteration, and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

aten = torch.ops.aten

REPEATED: Mapping[Any, Any] = {
    aten.gelu.default: aten.gelu.out,
    aten.relu.default: aten.relu.out,
    aten.silu.default: aten.silu.out,
    aten.tanh.default: aten.tanh.out,
    aten.sigmoid.default: aten.sigmoid.out,
    aten.leaky_relu.default: aten.leaky_relu.out,
    aten.exp.default: aten.exp.out,
    aten.neg.default: aten.neg.out,
    aten.mul.Tensor: aten.mul.out,
    aten.add.Tensor: aten.add.out,
    aten.sub.Tensor: aten.sub.out,
    aten.div.Tensor: aten.div.out,
    aten.pow.Tensor_Scalar: aten.pow.Tensor_Scalar_out,
    aten._softmax.default: aten._softmax.out,
    aten.native_layer_norm.default: aten.native_layer_norm.out,
    aten.native_batch_norm.default: aten.native_batch_norm.out,
}
"""Operations of which the first result can be made again, and what makes it in memory that is given."""

_OUT = {
    aten.native_layer_norm.out: ("out0", "out1", "out2"),
    aten.native_batch_norm.out: ("out", "save_mean", "save_invstd"),
}
"""What results are called, where there are others beside it."""

MOST_OPERATIONS = 8
"""Of one activation."""

Geometry = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]
"""Of a tensor within its storage: offset, sizes and strides in elements, and what they are."""


def geometry(tensor: torch.Tensor) -> Geometry:
    """Where in its storage a tensor is."""
    return int(tensor.storage_offset()), tuple(tensor.size()), tuple(tensor.stride()), tensor.dtype


def laid(storage: torch.UntypedStorage, where: Geometry) -> torch.Tensor:
    """The tensor at this place of a storage; an ordinary one, in inference mode too."""
    offset, size, stride, dtype = where
    with torch.inference_mode(False):
        return torch.empty(0, dtype=dtype).set_(storage, offset, size, stride)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A tensor that is read: of a storage that autograd saved, or one that stays.

    Attributes:
        saved: by which event; -1 where it stays.
        where: in its storage.
        stays: the tensor, if it stays.
    """

    saved: int
    where: Geometry
    stays: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """One operation, and what it reads: numbers, sources, and recipes of what is not kept.

    Attributes:
        where: of the result in its storage, which it fills.
        seconds: that all of it took when it was recorded.
    """

    operation: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    where: Geometry
    seconds: float

    def sources(self) -> Iterator[Source]:
        """All that is read, through all operations."""
        for value in (*self.arguments, *self.keywords.values()):
            if isinstance(value, Source):
                yield value
            elif isinstance(value, Recipe):
                yield from value.sources()

    def compute(self, read: Callable[[Source], torch.Tensor], into: torch.Tensor | None = None) -> torch.Tensor:
        """Do it again, into this tensor if one is given."""

        def found(value: Any) -> Any:
            if isinstance(value, Source):
                return laid(value.stays.untyped_storage(), value.where) if value.stays is not None else read(value)
            return value.compute(read) if isinstance(value, Recipe) else value

        arguments = [found(value) for value in self.arguments]
        keywords = {name: found(value) for name, value in self.keywords.items()}
        if into is None:
            result = self.operation(*arguments, **keywords)
            return result if isinstance(result, torch.Tensor) else result[0]
        operation = REPEATED[self.operation]
        first, *others = _OUT.get(operation, ("out",))
        results = {first: into, **{name: into.new_empty(0) for name in others}}
        operation(*arguments, **keywords, **results)
        return into
