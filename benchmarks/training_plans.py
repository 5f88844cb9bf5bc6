"""Plans for recorded iterations: what each score costs at each limit, what pools reserve, how long planning takes.

Nothing is swapped here: a child process per model records an iteration, as `penstock.autoswap` does, and plans for it.
What following such plans costs is measured by `benchmarks.training`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import results
from benchmarks.arm import Child
from benchmarks.run import say
from benchmarks.training_models import TRAINED
from penstock.training.pool import library

_DEFAULT_OUT = results.FOLDER / "training_plans.json"


def main(
    models: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(t.name for t in TRAINED),
    out: Annotated[Path, typer.Option(help="Where the results go.")] = _DEFAULT_OUT,
) -> None:
    """Record, plan, and compare."""
    found = results.envelope("training_plans", {"statistic": "one recording"})
    cells: list[dict[str, Any]] = []
    for name in models.split(","):
        child = Child("benchmarks.training_plans_child", LD_PRELOAD=str(library()))
        with contextlib.closing(child):
            child.send({"model": name})
            child.wait()
            cell = child.ask("measure")
        cells.append(cell)
        pools = ", ".join(f"{pool} {nbytes / cell['load_nbytes']:.3f}" for pool, nbytes in cell["footprints"].items())
        say(f"{cell['title']}: footprint by load {pools}; planning {cell['planning_seconds']:.1f} s")
        results.write(out, found | {"cells": cells})


if __name__ == "__main__":
    typer.run(main)
