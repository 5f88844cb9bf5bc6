"""Whole weights read outside any plan: for `state_dict`, for `restore`, for buffers."""

from __future__ import annotations

import torch

from penstock.checkpoint import WeightSource
from penstock.runtime.binding import torch_dtype
from penstock.runtime.devices.base import settled_offset
from penstock.runtime.devices.cpu import READ_NBYTES, CpuArena
from penstock.runtime.requests import coalesced, read_requests
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
    for request in read_requests(source, offset, block_nbytes=block, read_nbytes=READ_NBYTES):
        if request.skip_nbytes is None:
            target = arena.view[request.arena_offset : request.arena_offset + request.nbytes]
            storage.read(request.file, request.file_offset, target, request.needed_nbytes)
        else:
            bounce = CpuArena(request.nbytes)
            storage.read(request.file, request.file_offset, bounce.view, request.needed_nbytes)
            kept = bounce.view[request.skip_nbytes : request.needed_nbytes]
            arena.view[request.arena_offset : request.arena_offset + len(kept)] = kept
    settled = settled_offset(offset, realign=realign)
    if settled != offset:
        arena.move(offset, settled, source.nbytes)
    data = arena.tensor(settled, dtype, source.shape)
    # Small weights share the allocator's pages; a large one keeps the memory that it was read into.
    with torch.inference_mode(False):  # else a restored module could not be trained
        return data.clone() if realign and source.nbytes < _COPIED_NBYTES else data
