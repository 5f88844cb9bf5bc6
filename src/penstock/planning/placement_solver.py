"""Placements by CP-SAT, which `ortools` brings: better ones, and proofs that there are none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from penstock.planning.placement_buffers import Ints
from penstock.planning.placement_parts import Part
from penstock.planning.placement_search import LARGEST_SUM, PartSearch

_LARGEST = 20_000  # moments of all lifetimes: building a larger model takes seconds
_FIRST_SECONDS, _ROUND_SECONDS = 3.0, 8.0  # after which the solver is asked again, from what is best by then


def load_solver() -> Any | None:
    """CP-SAT's module, or None where it is not installed."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None
    return cp_model


class Companion:
    """A solver that works on the highest part while beams go on: its thread holds Python's lock only at either end.

    Of each part it is asked first whether the load is enough, which of the placements of real models it mostly says at
    once, and then for something lower than the lowest that is known.
    """

    def __init__(self, cp_model: Any, searches: Sequence[PartSearch], deadline: float) -> None:
        self._cp, self._deadline = cp_model, deadline
        self._searches = [search for search in searches if _is_small(search.part)]
        self._least = max(search.part.least for search in searches)
        self._asked: set[int] = set()  # parts, by their first buffer
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
        open_ones = [search for search in self._searches if search.height > max(self._least, search.bound)]
        left = self._deadline - time.monotonic()
        if open_ones and left > 0:
            self._ask(max(open_ones, key=lambda search: search.height), left)

    def _ask(self, search: PartSearch, seconds: float) -> None:
        name = int(search.part.indices[0])
        is_first = name not in self._asked
        self._asked.add(name)
        solver = self._cp.CpSolver()
        solver.parameters.max_time_in_seconds = min(seconds, _FIRST_SECONDS if is_first else _ROUND_SECONDS)
        limit = self._least if is_first else search.height
        hint = None if is_first else search.offsets
        self._running = search, solver, self._pool.submit(_solve, self._cp, solver, search.part, limit, hint)

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
    return int((part.past - part.first).sum()) <= _LARGEST and int(part.size.sum()) <= LARGEST_SUM


def _solve(cp_model: Any, solver: Any, part: Part, limit: int, hint: Ints | None) -> tuple[Ints | None, int]:
    """Offsets of a placement of at most `limit`, if any is found, and a height below which there is none.

    Where there is a hint, a placement of that height, as low a one as can be; where there is none, any.

    What lives at one moment must not overlap, as operations that need one machine. Each such set as a constraint of
    its own makes the solver far better than one constraint on rectangles in a plane, which says the same.
    """
    sizes = part.size.tolist()
    model = cp_model.CpModel()
    starts = [model.new_int_var(0, limit - size, "") for size in sizes]
    intervals = [model.new_fixed_size_interval_var(start, size, "") for start, size in zip(starts, sizes, strict=True)]
    for moment in range(part.moments):
        lives = (part.first <= moment) & (moment < part.past) | (moment + part.moments < part.past)
        model.add_no_overlap([intervals[index] for index in np.flatnonzero(lives).tolist()])
    if hint is not None:
        top = model.new_int_var(part.least, limit, "")
        for start, size, offset in zip(starts, sizes, hint.tolist(), strict=True):
            model.add(start + size <= top)
            model.add_hint(start, offset)
        model.add_hint(top, limit)
        model.minimize(top)
    solver.parameters.num_workers = 1  # the other core is the beams'
    solver.parameters.interleave_search = hint is not None  # all its ways in turns, those that change the hint too
    solver.parameters.random_seed = 0
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None, limit + 1
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, part.least
    bound = part.least if hint is None else max(part.least, round(solver.best_objective_bound))
    return np.array([solver.value(start) for start in starts], dtype=np.int64), bound
