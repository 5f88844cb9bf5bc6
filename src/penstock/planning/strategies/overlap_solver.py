"""FlashMem's overlap plan by CP-SAT, which `ortools` brings."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from penstock.errors import PlanError
from penstock.planning.strategies.overlap import Overlap, Overlapped

OPTIMAL, FEASIBLE, INFEASIBLE, UNKNOWN = "OPTIMAL", "FEASIBLE", "INFEASIBLE", "UNKNOWN"
_SMALL = 24  # stays for which one thread is enough, and gives the same solution each time
_LONG, _WINDOW = 160, 80  # stays that are not solved together any more, and those that are instead
_THREADS = 4  # different ways of solving it, one of them by linear relaxation, more than cores
_SCALE = 1000  # the objective's costs are whole numbers


@dataclass(frozen=True)
class Solved:
    """What the solver found.

    Attributes:
        status: `OPTIMAL`, `FEASIBLE`: there may be better ones; `INFEASIBLE`: there is none; `UNKNOWN`: out of time.
        solution: unless the status is one of the last two.
        bound: no solution has a lower objective.
    """

    status: str
    solution: Overlapped | None
    bound: float


def load_solver() -> Any:
    """CP-SAT's module.

    Raises:
        PlanError: it is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise PlanError(
            "strategy 'flashmem' plans with OR-Tools, which is not installed: pip install 'penstock[solver]'"
        ) from error
    return cp_model


def solve(overlap: Overlap, start: Overlapped, seconds: float) -> Solved:
    """The best solution that CP-SAT finds in about `seconds`, from `start` on where that is a solution.

    Models of many stays are solved in a rolling window, as in the paper: its stays anew, all others as they are. That
    takes a solution to start from.
    """
    cp_model, is_start = load_solver(), start.keeps(overlap)
    if len(overlap.items) <= _LONG:
        solved = _Model(cp_model, overlap).solve(start if is_start else None, seconds)
        if is_start and solved.solution is None:  # no time even to look at the start
            return Solved(FEASIBLE, start, overlap.least_objective())
        return solved
    if not is_start:
        return Solved(UNKNOWN, None, 0.0)
    deadline = time.monotonic() + seconds
    best, bound = start, overlap.least_objective()
    while True:
        before = best.objective(overlap)
        for begin in range(0, len(overlap.items), _WINDOW // 2):
            left = deadline - time.monotonic()
            if left <= 0 or best.objective(overlap) <= bound:
                break
            window = range(begin, min(begin + _WINDOW, len(overlap.items)))
            best = _solve_window(cp_model, overlap, best, window, min(left, seconds * _WINDOW / len(overlap.items)))
        if time.monotonic() >= deadline or best.objective(overlap) >= before:
            return Solved(OPTIMAL if best.objective(overlap) <= bound else FEASIBLE, best, bound)


def _solve_window(cp_model: Any, overlap: Overlap, present: Overlapped, window: range, seconds: float) -> Overlapped:
    """`present`, its stays in `window` as well as can be; those of weights that stay elsewhere too keep theirs."""
    outside = {item.weight for index, item in enumerate(overlap.items) if index not in window}
    chosen = [index for index in window if overlap.items[index].weight not in outside]
    weights = {overlap.items[index].weight for index in chosen}
    others = Overlapped(present.preloaded - weights, list(present.moves))
    for index in chosen:
        others.moves[index] = {}
    part = replace(
        overlap,
        items=tuple(overlap.items[index] for index in chosen),
        capacity_nbytes=_left(overlap.capacity_nbytes, others.moved_nbytes(overlap)),
        cap_nbytes=_left(overlap.cap_nbytes, others.held_nbytes(overlap)),
    )
    start = Overlapped(present.preloaded & weights, [present.moves[index] for index in chosen])
    found = _Model(cp_model, part).solve(start, seconds).solution or start
    for index, moves in zip(chosen, found.moves, strict=True):
        others.moves[index] = moves
    return Overlapped(others.preloaded | found.preloaded, others.moves)


def _left(limits: Sequence[int], taken: Sequence[int]) -> tuple[int, ...]:
    return tuple(limit - nbytes for limit, nbytes in zip(limits, taken, strict=True))


class _Model:
    """Variables by item, and by call where they have one: w (preloaded), x (chunks moved), b (begun before the end).

    b is 1 from the first move on, so that its sum over calls is i_w - z_w.
    """

    def __init__(self, cp_model: Any, overlap: Overlap) -> None:
        self._cp, self._overlap = cp_model, overlap
        self._unit = math.gcd(*(item.chunk_nbytes for item in overlap.items)) or 1
        self._model = cp_model.CpModel()
        self._w = {weight: self._model.new_bool_var("") for weight in overlap.held_by()}
        self._x: list[dict[int, Any]] = []
        self._b: list[dict[int, Any]] = []
        for item in overlap.items:
            calls = range(item.earliest, item.first)
            most = {call: overlap.most_chunks(item, call) for call in calls}
            self._x.append({call: self._model.new_int_var(0, chunks, "") for call, chunks in most.items()})
            self._b.append({call: self._model.new_bool_var("") for call in calls})
        self._move_everything()
        self._keep_capacity()
        self._keep_cap()
        share = round(_SCALE * overlap.lam)
        begun = [variable for variables in self._b for variable in variables.values()]
        self._model.minimize(share * sum(self._w.values()) + (_SCALE - share) * sum(begun))

    def solve(self, hint: Overlapped | None, seconds: float) -> Solved:
        """Run the solver."""
        if hint is not None:
            self._hint(hint)
        solver = self._cp.CpSolver()
        solver.parameters.max_time_in_seconds = seconds
        solver.parameters.num_workers = 1 if len(self._overlap.items) <= _SMALL else _THREADS
        solver.parameters.random_seed = 0
        status = solver.solve(self._model)
        if status in (self._cp.OPTIMAL, self._cp.FEASIBLE):
            name = OPTIMAL if status == self._cp.OPTIMAL else FEASIBLE
            return Solved(name, self._read(solver), solver.best_objective_bound / _SCALE)
        return Solved(INFEASIBLE if status == self._cp.INFEASIBLE else UNKNOWN, None, 0.0)

    def _move_everything(self) -> None:
        """Every chunk of what is not preloaded moves, and b is what it says."""
        for item, moved, begun in zip(self._overlap.items, self._x, self._b, strict=True):
            preloaded = self._w[item.weight]
            self._model.add(sum(moved.values()) + item.chunks * preloaded == item.chunks)
            for call, variable in moved.items():
                self._model.add(variable <= self._overlap.most_chunks(item, call) * begun[call])
                if call - 1 in begun:
                    self._model.add_implication(begun[call - 1], begun[call])
            distance = self._overlap.least_distance(item)  # implied, but the solver's bound is poor without it
            for call in range(item.first - (distance or 0), item.first):
                self._model.add_bool_or([begun[call], preloaded])

    def _keep_capacity(self) -> None:
        for call, nbytes in enumerate(self._overlap.capacity_nbytes):
            terms = [
                item.chunk_nbytes // self._unit * moved[call]
                for item, moved in zip(self._overlap.items, self._x, strict=True)
                if call in moved
            ]
            if terms:
                self._model.add(sum(terms) <= nbytes // self._unit)

    def _keep_cap(self) -> None:
        """What is preloaded and what has moved and is not yet released."""
        held_by = self._overlap.held_by()
        preloaded = self._model.new_int_var(0, sum(held_by.values()) // self._unit, "")
        self._model.add(preloaded == sum(held_by[weight] // self._unit * w for weight, w in self._w.items()))
        rows: list[list[Any]] = [[] for _ in self._overlap.capacity_nbytes]
        for item, moved in zip(self._overlap.items, self._x, strict=True):
            for call, variable in moved.items():
                term = item.chunk_nbytes // self._unit * variable
                for later in range(call, item.last + 1):
                    rows[later].append(term)
        for row, nbytes in zip(rows, self._overlap.cap_nbytes, strict=True):
            self._model.add(sum(row) + preloaded <= nbytes // self._unit)

    def _hint(self, hint: Overlapped) -> None:
        for weight, variable in self._w.items():
            self._model.add_hint(variable, weight in hint.preloaded)
        for moved, begun, moves in zip(self._x, self._b, hint.moves, strict=True):
            for call, variable in moved.items():
                self._model.add_hint(variable, moves.get(call, 0))
                self._model.add_hint(begun[call], bool(moves) and call >= min(moves))

    def _read(self, solver: Any) -> Overlapped:
        moves = [{call: solver.value(variable) for call, variable in moved.items()} for moved in self._x]
        return Overlapped(
            {weight for weight, variable in self._w.items() if solver.value(variable)},
            [{call: chunks for call, chunks in one.items() if chunks} for one in moves],
        )
