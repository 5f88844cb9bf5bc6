"""`penstock exec`: a program whose allocations `penstock.autoswap` can plan."""

from __future__ import annotations

import os
import shutil
from typing import Annotated

import typer

from penstock.cli.options import UsageError


def execute(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="After `--`: python train.py, say.")],
) -> None:
    """Run COMMAND with the planned pool: `penstock.autoswap` in it then places every large block beforehand."""
    program = shutil.which(command[0])
    if program is None:
        raise UsageError(f"{command[0]}: no such program: name one that is in PATH, such as python")
    os.environ.update(with_pool())
    os.execv(program, command)


def with_pool() -> dict[str, str]:
    """What the environment of a program needs so that it has the planned pool.

    Raises:
        CompilerMissingError: there is none, and no compiler to build it.
        UsageError: its path cannot be preloaded.
    """
    from penstock.training.pool import library

    path = str(library())
    if " " in path or ":" in path:
        raise UsageError(
            f"{path}: a path with spaces or colons cannot be preloaded: set PENSTOCK_CACHE to another folder"
        )
    before = os.environ.get("LD_PRELOAD")
    return {"LD_PRELOAD": f"{path} {before}" if before else path}
