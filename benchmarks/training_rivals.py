"""What people do today where training does not fit: everything saved goes to the disk, or every block is computed anew.

Both are as their documentation has them, given what they lack: direct I/O into a file with room, and blocks that were
chosen by hand for each model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from penstock.runtime.devices.cpu_queue import CpuArena
from penstock.training.swapfile import SwapFile, Written, room_nbytes

LEAST_NBYTES = 1 << 20
"""Smaller tensors stay: a transfer of them costs more than it gives."""

_BLOCKS = ("ResNetBottleNeckLayer", "_DenseLayer", "GPT2Block", "BertLayer")
_SEGMENTS = 5  # of a plain chain of layers


class Saving:
    """`torch.autograd.graph.save_on_cpu`, to a disk: what autograd saves is written at once, and read when asked for.

    Args:
        model: whose parameters stay where they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._file = SwapFile(None)
        self._stay = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._next = 0  # byte of the file, anew for each iteration

    def begin(self) -> None:
        """An iteration begins: what the last one wrote is not needed any more."""
        self._next = 0

    def pack(self, tensor: torch.Tensor) -> Any:
        """Write it, and keep where it went."""
        if tensor.nbytes < LEAST_NBYTES or tensor.untyped_storage()._cdata in self._stay:
            return tensor
        whole = tensor.detach().contiguous()
        room = room_nbytes(whole.nbytes)
        if self._next + room > self._file.nbytes:
            self._file.allot(room)
        if whole.untyped_storage().nbytes() != whole.nbytes:
            whole = whole.clone()
        written = self._file.write(whole.untyped_storage(), self._next)
        self._next += room
        return written, whole.dtype, whole.shape

    def unpack(self, packed: Any) -> torch.Tensor:
        """Read it."""
        if isinstance(packed, torch.Tensor):
            return packed
        written, dtype, shape = packed
        assert isinstance(written, Written)
        arena = CpuArena(room_nbytes(written.nbytes))
        flat = arena.tensor(written.lead_nbytes, torch.uint8, (written.nbytes,))
        self._file.read(written, flat.data_ptr())
        return flat.view(dtype).view(shape)

    def hooks(self) -> contextlib.AbstractContextManager[Any]:
        """Within which autograd saves."""
        return torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)


def checkpointed(model: nn.Module) -> int:
    """Have every block compute its activations anew in the backward pass; how many blocks there are."""
    blocks = [module for module in model.modules() if type(module).__name__ in _BLOCKS]
    if not blocks:
        blocks = list(_segments(model))
    for block in blocks:
        block.forward = _anew(block.forward)  # type: ignore[method-assign]
    return len(blocks)


def _segments(model: nn.Module) -> Iterator[nn.Module]:
    """A chain's layers in groups of about the same number; the model is changed to have them."""
    features = model.features if hasattr(model, "features") else model
    assert isinstance(features, nn.Sequential), "only chains have no blocks of their own"
    layers = list(features)
    size = -(-len(layers) // _SEGMENTS)
    groups = [nn.Sequential(*layers[begin : begin + size]) for begin in range(0, len(layers), size)]
    for name in list(features._modules):
        del features._modules[name]
    for group in groups:
        features.append(group)
    yield from groups


def _anew(forward: Callable[..., Any]) -> Callable[..., Any]:
    def checkpointing(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return checkpointing
