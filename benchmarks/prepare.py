"""Writes one model's checkpoint and offload folders: `python -m benchmarks.prepare MODEL tiny|full [ARM...]`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from benchmarks.model import write_checkpoint
from benchmarks.models import find
from benchmarks.ways import WAYS


def prepare(name: str, size: str, arms: Iterable[str]) -> None:
    """Writes what `arms` read of the tiny twin and, if `size` is "full", of the model, as far as it is not there."""
    for tiny in (True, False) if size == "full" else (True,):
        model = find(name, tiny=tiny)
        write_checkpoint(model)
        for arm in arms:
            WAYS[arm].prepare(model)


if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2], sys.argv[3:])
