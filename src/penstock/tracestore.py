"""Traces and plans kept between processes, so that the second one starts warm.

They lie in the cache folder under a fingerprint of checkpoint, module, machine and torch; a changed
checkpoint or another machine never meets an old trace. Files read back are untrusted and checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from penstock import machine
from penstock.cache import atomic_write, cache_dir
from penstock.errors import PlanError
from penstock.planning import Plan, PlanOptions, Problem
from penstock.planning.check import check
from penstock.planning.planner import make_plan
from penstock.runtime.binding import BoundWeight
from penstock.signature import Signature
from penstock.trace import Trace

KEPT_TRACES = 8

_PLANNER_VERSION = 6
"""Raise it when planning changes: plans that were kept before are made again."""


class TraceStore:
    """The traces of one module with one checkpoint on this machine.

    Args:
        checkpoint: the checkpoint's fingerprint.
    """

    def __init__(self, module: nn.Module, weights: Sequence[BoundWeight], checkpoint: str) -> None:
        names = [(weight.name, weight.source.dtype, weight.source.shape) for weight in weights]
        structure = [(name, type(child).__qualname__) for name, child in module.named_modules()]
        key = repr(
            (checkpoint, names, structure, torch.__version__, torch.get_num_threads(), machine.describe().fingerprint)
        )
        self._folder = cache_dir() / "traces" / hashlib.sha256(key.encode()).hexdigest()[:24]
        self._names = tuple(weight.name for weight in weights)

    def get(self, signature: Signature) -> Trace | None:
        """The trace kept for calls like this one, if there is a sound one."""
        return self._read(self._folder / f"{signature.digest}.json")

    def latest(self) -> Trace | None:
        """The trace of the kind of call that was recorded last."""
        for path in self._newest():
            trace = self._read(path)
            if trace is not None:
                return trace
        return None

    def single_row(self) -> frozenset[int]:
        """Weights that any kept trace multiplies with a single row."""
        found: frozenset[int] = frozenset()
        for path in self._newest():
            trace = self._read(path)
            found |= trace.single_row if trace is not None else frozenset()
        return found

    def put(self, signature: Signature, trace: Trace) -> None:
        """Keep `trace`; the oldest beyond `KEPT_TRACES` go. A full or read-only disk keeps nothing, silently."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._folder / f"{signature.digest}.json") as file:
                file.write(trace.to_json().encode())
            for path in self._newest()[KEPT_TRACES:]:
                path.unlink(missing_ok=True)

    def _newest(self) -> list[Path]:
        with contextlib.suppress(OSError):
            files = [(os.stat(path).st_mtime_ns, path) for path in self._folder.glob("*.json")]
            return [path for _, path in sorted(files, reverse=True)]
        return []

    def _read(self, path: Path) -> Trace | None:
        try:
            trace = Trace.from_json(path.read_text())
        except (OSError, UnicodeDecodeError, PlanError):
            return None
        return trace if trace.weights == self._names else None


def kept_plan(problem: Problem, strategy: str, options: PlanOptions | None = None) -> Plan:
    """The plan for `problem`, from the cache folder if a sound one is there, else made and kept.

    Raises:
        BudgetInfeasibleError: there is none.
        PlanError: none is what `options` ask for.
    """
    options = options or PlanOptions()
    text = f"{problem.fingerprint} {strategy} {options} {_PLANNER_VERSION}"
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = cache_dir() / "plans" / f"{key}.json"
    with contextlib.suppress(OSError, UnicodeDecodeError, PlanError):
        plan = Plan.from_json(path.read_text())
        if plan.problem_fingerprint == problem.fingerprint:
            check(problem, plan)
            return plan
    plan = make_plan(problem, strategy, options=options)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(plan.to_json().encode())
    return plan
