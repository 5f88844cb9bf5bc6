"""Placements by CP-SAT, which `ortools` brings: better ones, and proofs that there are none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from penstock.planning.placement_buffers import Ints
from penstock.planning.placement_parts import Part
from penstock.planning.placement_search import PartSearch

_LARGEST = 20_000  # moments of all lifetimes: building a larger model takes seconds
_ROUND_SECONDS = 8.0  # after which the solver is asked again, from what is best by then


def load_solver() -> Any | None:
    """CP-SAT's module, or None where it is not installed."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None
    return cp_model


class Companion:
    """A solver that works on the highest part while beams go on: its thread holds Python's lock only at either end."""

    def __init__(self, cp_model: Any, searches: Sequence[PartSearch], deadline: float) -> None:
        self._cp, self._deadline = cp_model, deadline
        self._searches = [search for search in searches if _is_small(search.part)]
        self._pool = ThreadPoolExecutor(1)
        self._running: tuple[PartSearch, Any, Future[tuple[Ints | None, int]]] | None = None

    def exchange(self) -> None:
        """Take over what the solver has found, if it is through, and ask it again; returns at once."""
        if self._running is not None:
            search, _, future = self._running
            if not future.done():
                return
            offsets, bound = future.result()
            search.bound = max(search.bound, bound)
            if offsets is not None and search.part.height(offsets) < search.height:
                search.take(offsets)
            self._running = None
        open_ones = [search for search in self._searches if not search.is_proved]
        left = self._deadline - time.monotonic()
        if open_ones and left > 0:
            search = max(open_ones, key=lambda search: search.height)
            solver = self._cp.CpSolver()
            solver.parameters.max_time_in_seconds = min(left, _ROUND_SECONDS)
            future = self._pool.submit(_solve, self._cp, solver, search.part, search.offsets)
            self._running = search, solver, future

    def wait(self, seconds: float) -> None:
        """Until the solver is through, where there is nothing else to do."""
        if self._running is None:
            return
        until = time.monotonic() + seconds
        while not self._running[2].done() and time.monotonic() < until:
            time.sleep(0.005)

    def close(self) -> None:
        """End the solver's work, and wait for that."""
        if self._running is not None:
            self._running[1].stop_search()
        self._pool.shutdown()


def _is_small(part: Part) -> bool:
    return int((part.past - part.first).sum()) <= _LARGEST


def _solve(cp_model: Any, solver: Any, part: Part, offsets: Ints) -> tuple[Ints | None, int]:
    """Offsets, if any are found that are as low as those given, and a height below which there is no placement.

    What lives at one moment must not overlap, as operations that need one machine. Each such set as a constraint of
    its own makes the solver far better than one constraint on rectangles in a plane, which says the same.
    """
    height, sizes = part.height(offsets), part.size.tolist()
    model = cp_model.CpModel()
    starts = [model.new_int_var(0, height - size, "") for size in sizes]
    intervals = [model.new_fixed_size_interval_var(start, size, "") for start, size in zip(starts, sizes, strict=True)]
    for moment in range(part.moments):
        lives = (part.first <= moment) & (moment < part.past) | (moment + part.moments < part.past)
        model.add_no_overlap([intervals[index] for index in np.flatnonzero(lives).tolist()])
    top = model.new_int_var(part.least, height, "")
    for start, size, offset in zip(starts, sizes, offsets.tolist(), strict=True):
        model.add(start + size <= top)
        model.add_hint(start, offset)
    model.add_hint(top, height)
    model.minimize(top)
    solver.parameters.num_workers = 1  # the other core is the beams'
    solver.parameters.interleave_search = True  # all its ways in turns, those that start from the hint too
    solver.parameters.random_seed = 0
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, part.least
    bound = max(part.least, round(solver.best_objective_bound))
    return np.array([solver.value(start) for start in starts], dtype=np.int64), bound
