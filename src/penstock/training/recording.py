"""Records an iteration of a script: `python -m penstock.training.recording RESULT WAYS SCRIPT [ARGUMENTS]`.

The script runs as it would by itself, until two of its iterations were alike and timed; the record goes to the file
RESULT, and the script ends there. It need not know of Penstock; where it has a block of `penstock.autoswap`, that
block is what is recorded. WAYS are options of `autoswap` that a script without one is recorded with, separated by
commas.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from penstock.budget import Budget
from penstock.cache import atomic_write
from penstock.training.autoswap import AutoSwap, is_active, when_planned
from penstock.training.planner import Planner
from penstock.training.ways import Ways

UNFINISHED = 3
"""Exit code of a script that ended before anything was recorded."""

_ALL = 1 << 62  # bytes; nothing leaves while an iteration is recorded


class Recorded(BaseException):
    """An iteration was recorded: the script need not go on. No `Exception`, so that none of its handlers takes it."""


class ScriptRecording:
    """Finds the optimizers of a script, and has an iteration of theirs observed.

    Args:
        result: the file for the record.
        ways: options of `autoswap` that are on, where the script has no block of its own.

    Attributes:
        steps: of optimizers, so far.
    """

    def __init__(self, result: Path, ways: Collection[str] = ()) -> None:
        self._result, self._ways = result, Ways(**dict.fromkeys(ways, True))
        self._optimizers: list[torch.optim.Optimizer] = []
        self._block: AutoSwap | None = None
        self.steps = 0

    def stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After any step. Once an optimizer steps again, all of an iteration are known."""
        self.steps += 1
        if self._block is not None or is_active():
            return
        if not any(optimizer is known for known in self._optimizers):
            self._optimizers.append(optimizer)
            return
        groups = (group for known in self._optimizers for group in known.param_groups)
        model = nn.ParameterList(parameter for group in groups for parameter in group["params"])
        self._block = AutoSwap(
            model, self._optimizers, budget=Budget(_ALL), offload_folder=None, scores="best", ways=self._ways
        )
        self._block.__enter__()

    def planned(self, planner: Planner) -> None:
        """The record is complete.

        Raises:
            Recorded: always.
        """
        with atomic_write(self._result) as file:
            file.write(planner.record().to_json().encode())
        raise Recorded

    def end(self) -> None:
        """Observe no more."""
        if self._block is not None:
            self._block.__exit__(None, None, None)


def record_script(result: Path, script: str, arguments: Sequence[str], ways: Collection[str] = ()) -> bool:
    """Run a script as a program until an iteration is recorded; whether one was."""
    sys.argv, sys.path[0] = [script, *arguments], str(Path(script).resolve().parent)
    recording = ScriptRecording(result, ways)
    forget = when_planned(recording.planned)
    handle = register_optimizer_step_post_hook(recording.stepped)
    try:
        runpy.run_path(script, run_name="__main__")
    except Recorded:
        return True
    finally:
        handle.remove()
        forget()
        recording.end()
    print(f"{script}: {recording.steps} steps of optimizers, and no two iterations that were alike", file=sys.stderr)
    return False


if __name__ == "__main__":
    is_done = record_script(Path(sys.argv[1]), sys.argv[3], sys.argv[4:], list(filter(None, sys.argv[2].split(","))))
    sys.exit(0 if is_done else UNFINISHED)
