"""Parameters and the memory they point into.

A parameter keeps its identity and class; only its data moves (SwapNet: assembly by reference). While its
bytes are in memory it is a tensor over them. Otherwise it is a tensor of the right shape and dtype without
any memory, which raises when a kernel touches it: torch builds fake tensors the same way, metadata without
data behind the CPU's dispatch keys.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from penstock.checkpoint import Checkpoint, WeightSource
from penstock.errors import CheckpointError
from penstock.runtime.devices.base import ALIGNMENT_NBYTES


def unreadable(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, stride: tuple[int, ...] | None = None
) -> torch.Tensor:
    """A tensor of `shape` without memory that can stand in for one on `device`."""
    with torch.inference_mode(False):
        hollow = torch.empty(shape, dtype=dtype, device="meta")
        if stride is not None:
            hollow = hollow.as_strided(shape, stride)
        hollow.untyped_storage().resize_(0)  # so that gathers and slices raise too
        return torch.Tensor._make_subclass(torch.Tensor, hollow, False, device_for_backend_keys=device)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that torch calls `name`."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"dtype {name!r} is not known to torch {torch.__version__}: upgrade torch")
    return dtype


@dataclass(eq=False)
class BoundWeight:
    """One weight of a streamed module: a parameter, everywhere it is used, and where its bytes are.

    Attributes:
        name: its first name in the module's state dict.
        parameter: the one object that every owner holds.
        owners: the modules that hold it and under which attribute.
        source: its bytes in the checkpoint.
        is_aligned: whether it lay on a multiple of `ALIGNMENT_NBYTES` before it was streamed. One that only a
            checkpoint knows counts as mapped from there, at the file's own alignment, which is how libraries load it.
        row_paths: the embedding layers among its owners, if rows of it can be read alone.
        stride: of a weight whose bytes are in another order than its dimensions (channels last, transposed); else None.
        rows: parts that each of `slice_paths`, layers among its owners, can compute with one after another.
    """

    name: str
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]
    source: WeightSource
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    is_aligned: bool = False
    row_paths: frozenset[str] = frozenset()
    stride: tuple[int, ...] | None = None
    rows: int = 1
    slice_paths: frozenset[str] = frozenset()
    hollow: torch.Tensor = field(init=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""
        return self.hollow.dtype

    @property
    def must_move(self) -> bool:
        """Whether it cannot be used at an address congruent to its place in the file."""
        return any(p.file_offset % self.hollow.dtype.itemsize for p in self.source.pieces[:1])

    def __post_init__(self) -> None:
        self.hollow = unreadable(self.source.shape, torch_dtype(self.source.dtype), self.device, self.stride)

    @property
    def whole(self) -> BoundWeight:
        """The weight itself, as of a slice (see `slices.WeightSlice`)."""
        return self

    def adopt(self) -> None:
        """Make the parameter one that can point into this device's memory.

        A parameter of a skeleton on the meta device changes its tensor underneath: the object and its class stay.
        """
        if self.parameter.is_meta and "Meta" in str(torch._C._dispatch_keys(self.parameter)):
            with torch.inference_mode(False):
                shell = nn.Parameter(torch.empty(0, device=self.device), requires_grad=self.parameter.requires_grad)
            torch._C._swap_tensor_impl(self.parameter, shell)
        self.unbind()

    def laid_out(self, data: torch.Tensor) -> torch.Tensor:
        """`data`, which has the weight's bytes and shape, with its order of dimensions."""
        if self.stride is None:
            return data
        with torch.inference_mode(False):
            return data.as_strided(self.source.shape, self.stride)

    def bind(self, data: torch.Tensor) -> None:
        """Let the parameter point at `data`."""
        self.parameter.data = data

    def unbind(self) -> None:
        """Make the parameter unreadable."""
        self.parameter.data = self.hollow


def to_realign(weights: Sequence[BoundWeight], single_row: Collection[int]) -> frozenset[int]:
    """Weights whose use at all, or last bits of a product with a single row, depend on an aligned address."""
    moved = {index for index, weight in enumerate(weights) if weight.must_move}
    return frozenset(moved | {index for index in single_row if weights[index].is_aligned})


class GuardedParameters(dict[str, nn.Parameter | None]):
    """A module's parameter dictionary that reports the reading of an absent weight before it is handed out.

    Attribute access goes through here; iteration (`parameters()`, `state_dict()`) does not. DeepSpeed's ZeRO
    stage 3 catches weights that are read without calling their owner in the same place.
    """

    def __init__(self, parameters: dict[str, nn.Parameter | None], absent: Callable[[nn.Parameter], None]) -> None:
        super().__init__(parameters)
        self._absent = absent

    def __getitem__(self, name: str) -> nn.Parameter | None:
        parameter = super().__getitem__(name)
        if parameter is not None and parameter.is_meta:
            self._absent(parameter)
        return parameter

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class Readable(Protocol):
    """What bytes of a checkpoint a tensor is made of: a weight's, or a slice's."""

    @property
    def source(self) -> WeightSource: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def is_aligned(self) -> bool: ...

    def laid_out(self, data: torch.Tensor) -> torch.Tensor: ...


class FileViews:
    """Weights as private mappings of the checkpoint: the way out where the plan has no place for one.

    Nothing is read until a kernel touches it, and then through the page cache: slower, never wrong.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def view(self, weight: Readable) -> torch.Tensor:
        """The weight's bytes as a tensor: mapped where they lie in one piece, as aligned as they were, else copied."""
        with torch.inference_mode(False):
            return weight.laid_out(
                self._view(weight.source, ALIGNMENT_NBYTES if weight.is_aligned else weight.dtype.itemsize)
            )

    def _view(self, source: WeightSource, alignment_nbytes: int) -> torch.Tensor:
        dtype = torch_dtype(source.dtype)
        if source.nbytes == 0:
            return torch.empty(source.shape, dtype=dtype)
        if len(source.pieces) == 1 and source.pieces[0].file_offset % alignment_nbytes == 0:
            return self._mapped(source.pieces[0].file, source.pieces[0].file_offset, source.nbytes, dtype).view(
                source.shape
            )
        copy = torch.empty(source.shape, dtype=dtype)
        flat = copy.view(-1).view(torch.uint8)
        for piece in source.pieces:
            mapped = self._mapped(piece.file, piece.file_offset, piece.nbytes, torch.uint8)
            flat[piece.weight_offset : piece.weight_offset + piece.nbytes] = mapped
        return copy

    def _mapped(self, file: int, offset: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
        identity = self._checkpoint.files[file]
        identity.check()
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with identity.path.open("rb") as handle:
            mapping = mmap.mmap(handle.fileno(), offset - start + nbytes, access=mmap.ACCESS_COPY, offset=start)
        return torch.frombuffer(mapping, dtype=dtype, count=nbytes // dtype.itemsize, offset=offset - start)
