"""How fast storages go out of memory and come back, measured on the file system that they go to."""

from __future__ import annotations

import statistics
from pathlib import Path
from time import perf_counter

import torch

from penstock.planning.swap_problem import Link
from penstock.training.swapfile import SwapFile, room_nbytes

_SMALL_NBYTES, _LARGE_NBYTES, _TIMES = 1 << 20, 32 << 20, 3


def measure_links(folder: Path | None) -> tuple[Link, Link]:
    """The links out and back; takes a fraction of a second.

    Raises:
        StorageError: there is no writing to the folder, or no room in it.
    """
    file = SwapFile(folder)
    try:
        file.allot(room_nbytes(_LARGE_NBYTES))
        storage = torch.zeros(_LARGE_NBYTES + 4096, dtype=torch.uint8).untyped_storage()
        small = torch.zeros(_SMALL_NBYTES, dtype=torch.uint8).untyped_storage()
        seconds: dict[tuple[str, int], list[float]] = {}
        for _ in range(_TIMES):
            for source in (small, storage):
                began = perf_counter()
                written = file.write(source, 0)
                ended = perf_counter()
                file.read(written, source.data_ptr())
                seconds.setdefault(("out", written.nbytes), []).append(ended - began)
                seconds.setdefault(("back", written.nbytes), []).append(perf_counter() - ended)
    finally:
        file.close()
    return _link(seconds, "out"), _link(seconds, "back")


def _link(seconds: dict[tuple[str, int], list[float]], way: str) -> Link:
    (small, short), (large, long) = sorted(
        (nbytes, statistics.median(times)) for (name, nbytes), times in seconds.items() if name == way
    )
    per_byte = max(long - short, long / 2) / (large - small)
    return Link(max(short - small * per_byte, 0.0), 1 / per_byte)
