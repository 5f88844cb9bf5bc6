"""Placement alone: how high hard public instances and the activations of real models end, as a ratio to their load.

SmartPool's rule, `place` and the best of omnimalloc's allocators get the same buffers, and the searches the same time,
one after another. Every placement goes through the checker. No model is loaded: lifetimes are of a pass without data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import results
from benchmarks.apart import run_apart
from benchmarks.arm import REPOSITORY
from benchmarks.lifetimes import Ints, lifetimes_of
from benchmarks.model import Model
from benchmarks.models import MODELS, find
from benchmarks.run import say
from penstock.planning.placement import place
from penstock.planning.placement_buffers import checked
from penstock.planning.placement_check import check_placement
from penstock.planning.placement_heuristics import smartpool

INSTANCES = REPOSITORY.parent / "shared" / "data" / "minimalloc"
RIVALS = ("supermalloc", "tabu_search")
"""omnimalloc's allocators that place the instances lowest, of all that it has."""

_THREADS = 2
_NO_LIMIT = 10**9
_DEFAULT_OUT = results.FOLDER / "placement.json"
Lifetimes = tuple[Ints, Ints, Ints]


def main(
    seconds: Annotated[str, typer.Option(help="Time limits of searches, comma-separated.")] = "10,60",
    models: Annotated[str, typer.Option(help="Comma-separated names.")] = ",".join(MODELS),
    instances: Annotated[Path, typer.Option(help="The folder of the hard instances.")] = INSTANCES,
    out: Annotated[Path, typer.Option(help="The results file.")] = _DEFAULT_OUT,
    tiny: Annotated[bool, typer.Option(help="Tiny twins of the models: only to see that all works.")] = False,
) -> None:
    """Measure placement."""
    limits = [float(part) for part in seconds.split(",")]
    rival = _version("omnimalloc")
    settings = {"repeats": 1, "seconds": limits, "omnimalloc": rival, "tiny": tiny}
    everything: dict[str, Any] = {**results.envelope("placement", settings), "cells": []}
    if not instances.is_dir():
        say(f"no hard instances at {instances}: only models are measured")
    for file in sorted(instances.glob("*.csv")):
        everything["cells"].append(measure_instance(file, limits, RIVALS if rival else ()))
        say(describe(everything["cells"][-1]))
        results.write(out, everything)
    for name in filter(None, models.split(",")):
        everything["cells"].append(run_apart(measure_model, find(name, tiny=tiny), limits[0]))
        say(describe(everything["cells"][-1]))
        results.write(out, everything)
    say(f"wrote {out}")


def measure_instance(file: Path, limits: Sequence[float], rivals: Sequence[str]) -> dict[str, Any]:
    """The cell of one instance: id, lower, upper and size by line."""
    table = np.loadtxt(file, delimiter=",", skiprows=1, usecols=(1, 2, 3), dtype=np.int64)
    buffers = table[:, 0], table[:, 1], table[:, 2]
    ways: dict[str, Callable[[], tuple[Ints, bool]]] = {"smartpool": lambda: (smartpool(checked(*buffers)), False)}
    for limit in limits:
        ways[f"penstock {limit:g} s"] = lambda limit=limit: _own(buffers, limit)
        for rival in rivals:
            ways[f"{rival} {limit:g} s"] = lambda limit=limit, rival=rival: (_rival(buffers, rival, limit), False)
    return _cell("instance", file.name.split(".")[0], buffers, ways)


def measure_model(model: Model, limit: float) -> dict[str, Any]:
    """The cell of one model's activations. Runs in a process of its own."""
    buffers = lifetimes_of(model)
    ways: dict[str, Callable[[], tuple[Ints, bool]]] = {
        "smartpool": lambda: (smartpool(checked(*buffers)), False),
        f"penstock {limit:g} s": lambda: _own(buffers, limit),
    }
    return _cell("model", model.title, buffers, ways)


def _cell(
    kind: str, title: str, buffers: Lifetimes, ways: dict[str, Callable[[], tuple[Ints, bool]]]
) -> dict[str, Any]:
    load_nbytes = _load(*buffers)
    records = {}
    for name, run in ways.items():
        began = time.perf_counter()
        offsets, is_proved = run()
        taken = time.perf_counter() - began
        height = int((offsets + buffers[2]).max())
        check_placement(*buffers, offsets, height)
        records[name] = {
            "height_nbytes": height,
            "ratio": height / load_nbytes,
            "seconds": taken,
            "proved_optimal": is_proved or height == load_nbytes,
        }
    return {"kind": kind, "title": title, "buffers": len(buffers[0]), "load_nbytes": load_nbytes, "ways": records}


def _own(buffers: Lifetimes, limit: float) -> tuple[Ints, bool]:
    placed = place(*buffers, seconds=limit)
    return placed.offsets, placed.proved_optimal


def _rival(buffers: Lifetimes, name: str, limit: float) -> Ints:
    """Offsets by an allocator of omnimalloc."""
    import omnimalloc
    from omnimalloc.allocators.supermalloc import SupermallocAllocator
    from omnimalloc.allocators.tabu_search import TabuSearchAllocator

    allocators = {
        "supermalloc": lambda: SupermallocAllocator(timeout=limit, num_threads=_THREADS),
        "tabu_search": lambda: TabuSearchAllocator(timeout=limit, max_iterations=_NO_LIMIT),
    }
    rows = zip(*(values.tolist() for values in buffers), strict=True)
    given = [
        omnimalloc.Allocation(id=index, size=nbytes, start=lower, end=upper)
        for index, (lower, upper, nbytes) in enumerate(rows)
    ]
    placed = omnimalloc.allocate(given, allocators[name]())
    by_buffer = sorted(placed, key=lambda allocation: allocation.id)
    return np.array([allocation.offset for allocation in by_buffer], dtype=np.int64)


def _load(lower: Ints, upper: Ints, size: Ints) -> int:
    """The most bytes at one moment: at some begin of a lifetime."""
    return max(int(size[(lower <= moment) & (moment < upper)].sum()) for moment in np.unique(lower))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe(cell: dict[str, Any]) -> str:
    """One line about a cell."""
    parts = [f"{name} {record['ratio']:.4f} ({record['seconds']:.1f} s)" for name, record in cell["ways"].items()]
    return f"{cell['title']}, {cell['buffers']} buffers: {', '.join(parts)}"


if __name__ == "__main__":
    typer.run(main)
