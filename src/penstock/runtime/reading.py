"""Whole weights read outside any plan: for `state_dict`, for `restore`, for buffers."""

from __future__ import annotations

import torch

from penstock.checkpoint import WeightSource
from penstock.runtime.binding import torch_dtype
from penstock.runtime.devices.base import settled_offset
from penstock.runtime.devices.cpu_queue import READ_NBYTES, CpuArena, Filler, Transfer
from penstock.runtime.requests import coalesced
from penstock.runtime.storage import Storage

_COPIED_NBYTES = 1 << 20


def read_weight(storage: Storage, source: WeightSource, *, realign: bool = True) -> torch.Tensor:
    """`source` in memory of its own, at an aligned address or, without `realign`, one congruent to its file offset.

    Raises:
        StorageError: it could not be read.
    """
    dtype = torch_dtype(source.dtype)
    if source.nbytes == 0:
        return torch.empty(source.shape, dtype=dtype)
    block = storage.block_nbytes
    offset = coalesced(source.pieces)[0].file_offset % block
    arena = CpuArena(-(-(offset + source.nbytes) // block) * block)
    Filler(arena, storage).fill(Transfer.of(source, offset, storage, READ_NBYTES, realign=realign))
    data = arena.tensor(settled_offset(offset, realign=realign), dtype, source.shape)
    # Small weights share the allocator's pages; a large one keeps the memory that it was read into.
    with torch.inference_mode(False):  # else a restored module could not be trained
        return data.clone() if realign and source.nbytes < _COPIED_NBYTES else data
