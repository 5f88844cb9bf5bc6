"""Layers that are computed slice by slice: each slice of the weight is used as it arrives, and then its space is free.

Linear layers and convolutions give some of their output features for each slice. A `Conv1D` of transformers keeps its
weight transposed, so each of its slices adds to all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from penstock.checkpoint import Piece, WeightSource
from penstock.errors import StreamStateError
from penstock.layout import sliced
from penstock.runtime.binding import BoundWeight

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., torch.Tensor]] = {
    nn.Conv1d: nn.functional.conv1d,
    nn.Conv2d: nn.functional.conv2d,
    nn.Conv3d: nn.functional.conv3d,
}


@dataclass(eq=False)
class WeightSlice:
    """Rows `begin` to `end` of a weight that is never in memory as a whole, where a `BoundWeight` could stand.

    Attributes:
        source: its bytes in the checkpoint.
        data: the slice itself, of shape `(rows, ...)`, while it is in memory.
    """

    whole: BoundWeight
    begin: int
    end: int
    source: WeightSource = field(init=False)
    data: torch.Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        source = self.whole.source
        row_nbytes = source.nbytes // self.whole.rows
        first = source.shape[0] // self.whole.rows
        begin_nbytes, end_nbytes = self.begin * row_nbytes, self.end * row_nbytes
        pieces = tuple(
            Piece(piece.file, piece.file_offset, piece.nbytes, piece.weight_offset - begin_nbytes)
            for piece in sliced(source.pieces, begin_nbytes, end_nbytes)
        )
        self.source = WeightSource(source.dtype, ((self.end - self.begin) * first, *source.shape[1:]), pieces)

    @property
    def name(self) -> str:
        """The weight's, and which of its rows."""
        return f"{self.whole.name}[{self.begin}:{self.end}]"

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""
        return self.whole.dtype

    @property
    def is_aligned(self) -> bool:
        """Whether it has to lie on an aligned address, and not where the file has it."""
        return self.whole.must_move

    def laid_out(self, data: torch.Tensor) -> torch.Tensor:
        """`data` as it is: a weight whose dimensions are in another order is not sliced."""
        return data

    def bind(self, data: torch.Tensor) -> None:
        """Let the layer find its bytes."""
        self.data = data

    def unbind(self) -> None:
        """Make it unreadable."""
        self.data = None


def sliceable_rows(module: nn.Module, attribute: str, shape: tuple[int, ...]) -> int:
    """How many rows of `module`'s parameter `attribute` it can compute with one after another; 1 if it cannot."""
    if attribute != "weight" or "forward" in vars(module) or not shape or 0 in shape:
        return 1
    kind = _kind(module)
    if kind in _CONVOLUTIONS:
        return shape[0] if module.groups == 1 else int(module.groups)  # type: ignore[arg-type]
    return 1 if kind is None else shape[0]


class SlicedProduct:
    """What `module` makes of the tensor `given`, slice by slice.

    Attributes:
        result: as the module's own, once every slice was added, in order; equal to it within the dtype's rounding.
    """

    def __init__(self, module: nn.Module, given: torch.Tensor) -> None:
        self._module: Any = module
        self._kind = _kind(module)
        self._given = given
        self.result = torch.empty(0)
        if self._kind in _CONVOLUTIONS:
            self._given = _padded(module, given)

    def add(self, item: WeightSlice) -> None:
        """Use the next slice, which is in memory."""
        if self._kind in _CONVOLUTIONS:
            self._add_convolution(item)
        elif self._kind is nn.Linear:
            self._add_linear(item)
        else:
            self._add_transposed(item)

    def _add_linear(self, item: WeightSlice) -> None:
        bias = self._module.bias
        part = nn.functional.linear(self._given, _data(item), None if bias is None else bias[item.begin : item.end])
        self._join(part, item, item.begin, dim=-1)

    def _add_convolution(self, item: WeightSlice) -> None:
        module, weight, given = self._module, _data(item), self._given
        dim = given.dim() - weight.dim() + 1  # of the channels: there may be no batch
        first = item.begin * item.whole.source.shape[0] // item.whole.rows
        groups = 1
        if module.groups > 1:
            groups = item.end - item.begin
            given = given.narrow(dim, item.begin * weight.shape[1], groups * weight.shape[1])
        bias = None if module.bias is None else module.bias[first : first + weight.shape[0]]
        padding = module.padding if module.padding_mode == "zeros" else 0
        convolve = _CONVOLUTIONS[self._kind]  # type: ignore[index]
        part = convolve(given, weight, bias, module.stride, padding, module.dilation, groups)
        self._join(part, item, first, dim)

    def _add_transposed(self, item: WeightSlice) -> None:
        rows, weight, kind = self._given[..., item.begin : item.end], _data(item), self._given.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        wide = torch.promote_types(dtype, torch.float32)  # each slice adds to all features: halves would lose bits
        with torch.autocast(kind, enabled=False):
            part = torch.mm(rows.reshape(-1, item.end - item.begin).to(dtype).to(wide), weight.to(dtype).to(wide))
            self.result = part + self._module.bias.to(dtype) if item.begin == 0 else self.result.add_(part)
        if item.end == item.whole.rows:
            self.result = self.result.to(dtype).view(*self._given.shape[:-1], -1)

    def _join(self, part: torch.Tensor, item: WeightSlice, begin: int, dim: int) -> None:
        if item.begin == 0:
            shape = list(part.shape)
            shape[dim] = item.whole.source.shape[0]
            self.result = torch.empty(
                shape, dtype=part.dtype, device=part.device, memory_format=_memory_format(part, self._given)
            )
        self.result.narrow(dim, begin, part.shape[dim]).copy_(part)


def _memory_format(part: torch.Tensor, given: torch.Tensor) -> torch.memory_format:
    """That of `part`; of what it was made from where `part`, a single channel perhaps, does not tell."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(part.dim())
    telling = given if part.is_contiguous() else part
    if channels_last is None or telling.is_contiguous() or not telling.is_contiguous(memory_format=channels_last):
        return torch.contiguous_format
    return channels_last


def _padded(module: Any, given: torch.Tensor) -> torch.Tensor:
    """`given` with the padding that a convolution cannot add by itself."""
    if module.padding_mode == "zeros":
        return given
    return nn.functional.pad(given, module._reversed_padding_repeated_twice, mode=module.padding_mode)


def _data(item: WeightSlice) -> torch.Tensor:
    if item.data is None:
        raise StreamStateError(f"{item.name} is not in memory")
    return item.data


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """The class whose forward `module` has, if it is one that can be computed slice by slice."""
    transposed = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    for kind in (nn.Linear, *_CONVOLUTIONS, transposed):
        if kind is not None and isinstance(module, kind):
            return kind if type(module).forward is kind.forward else None
    return None
