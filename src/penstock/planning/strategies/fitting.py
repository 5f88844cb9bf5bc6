"""The best plan for a problem whose weights are cut and whose ebbs are decided: tables, small weights, the search."""

from __future__ import annotations

import math
from collections.abc import Collection

from penstock.planning.ebbs import list_ebbs as list_stays
from penstock.planning.lifetimes import streamable_uses
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem
from penstock.planning.strategies.candidates import Bench, Candidate
from penstock.planning.strategies.chunks import list_loads
from penstock.planning.strategies.ebbing import Ebbing
from penstock.planning.strategies.layout import finish, list_ebbs
from penstock.planning.strategies.search import FEW, Search

_TRIALS = 12  # exchanges that the search may try
_TABLES_TRIED = 2
WORTHWHILE = 0.99
"""A resident table is all loaded in the cold pass: what it saves in later ones has to be worth that."""


class Fitting:
    """Plans for `problem` in which activations up to `level_nbytes` have room beside the whole arena.

    Args:
        goal: the score that no plan can beat.
        steadiness: how much of it is a pass with slow storage (see `candidates.Bench`).
    """

    def __init__(self, problem: Problem, goal: float, level_nbytes: int, steadiness: float) -> None:
        self._problem, self._goal, self._steadiness = problem, goal, steadiness
        self._stays = list_stays(problem, level_nbytes)
        self._ebbing = Ebbing(problem, self._stays)
        reserve = problem.reserve
        self._capacity_nbytes = problem.budget_nbytes - reserve.io_nbytes - reserve.bookkeeping_nbytes - level_nbytes
        self._uses = streamable_uses(problem)
        self._whole = {use.weight for use in self._uses}

    @property
    def is_feasible(self) -> bool:
        """Whether what one moment needs of the weights fits."""
        return self._ebbing.least_nbytes(self._uses) <= self._capacity_nbytes

    def plan(self, strategy: str) -> Plan:
        """The best plan found, which is feasible, with the tables that are worth their space."""
        problem = self._problem
        read = {weight for call in problem.calls for weight in call.reads}
        tables = {weight for weight in read if problem.weights[weight].rows_only}
        kept: frozenset[int] = frozenset()
        spare_nbytes = self._capacity_nbytes - self._nbytes(self._whole)
        if spare_nbytes >= 0 and not self._stays:  # nothing has to stream, so nothing is made to
            kept = _tables_within(problem, tables, spare_nbytes)
            return finish(problem, strategy, {*self._whole, *kept}, sorted(tables - kept), [], 0)
        best = self._plan(strategy, kept, tables)
        for table in sorted(tables, key=lambda weight: (-_row_seconds(problem, weight), weight))[:_TABLES_TRIED]:
            if _row_seconds(problem, table) > 0 and self._fits(kept | {table}):
                plan = self._plan(strategy, kept | {table}, tables - kept - {table})
                if plan.prediction.warm_seconds < WORTHWHILE * best.prediction.warm_seconds:
                    best, kept = plan, kept | {table}
        return best

    def least_plan(self, strategy: str) -> Plan:
        """The plan that streams everything in the least space; there is one from the least budget on."""
        tables = {index for index, weight in enumerate(self._problem.weights) if weight.rows_only}
        read = {weight for call in self._problem.calls for weight in call.reads}
        bench = Bench(self._problem, self._capacity_nbytes, (), tables, stays=self._stays)
        return self._finish(strategy, frozenset(), tables & read, bench.try_least())

    def _plan(self, strategy: str, kept: frozenset[int], rows: Collection[int]) -> Plan:
        """The best plan in which the tables `kept` are resident and `rows` are not."""
        problem = self._problem
        capacity_nbytes = self._capacity_nbytes - self._nbytes(kept)
        if self._nbytes(self._whole) <= capacity_nbytes and not self._stays:
            return finish(problem, strategy, {*self._whole, *kept}, sorted(rows), [], 0)
        small = self._small_residents(capacity_nbytes)
        found = self._best_candidate(capacity_nbytes - self._nbytes(small), kept | small, rows)
        return self._finish(strategy, kept | small, rows, found)

    def _finish(self, strategy: str, fixed: frozenset[int], rows: Collection[int], found: Candidate) -> Plan:
        return finish(
            self._problem,
            strategy,
            fixed | found.residents,
            sorted(rows),
            list_loads(self._problem, found.uses, found.starts, found.chunks),
            found.region_nbytes,
            ebbs=list_ebbs(found.uses, found.extents, found.starts),
        )

    def _best_candidate(self, capacity_nbytes: int, fixed: Collection[int], rows: Collection[int]) -> Candidate:
        benches = [
            Bench(
                self._problem,
                capacity_nbytes,
                fixed,
                rows,
                patience=patience,
                stays=self._stays,
                steadiness=self._steadiness,
            )
            for patience in self._patiences(fixed, rows)
        ]
        best = benches[0].try_least()
        for bench in benches:
            found = Search(bench, self._goal).run(_TRIALS)
            if found is not None and found.rank < best.rank:
                best = found
        return best

    def _patiences(self, fixed: Collection[int], rows: Collection[int]) -> tuple[float, ...]:
        """How long weights may stay between two uses, where any that may stream has two."""
        weights = [use.weight for use in self._uses if use.weight not in fixed and use.weight not in rows]
        if len(weights) == len(set(weights)):
            return (0.0,)
        return (0.0, 1.0, math.inf) if len(self._uses) <= FEW else (0.0, 1.0)

    def _small_residents(self, capacity_nbytes: int) -> frozenset[int]:
        """The smallest of the tiny weights, as many as leave room for what one moment needs of all others."""
        problem = self._problem
        tiny = [weight for weight in self._whole if problem.weights[weight].nbytes <= problem.tiny_nbytes]
        tiny.sort(key=lambda weight: (problem.extent_nbytes(weight), weight))
        low, high = 0, len(tiny)
        while low < high:  # each that stays takes at least what it saves, so the total only grows
            middle = (low + high + 1) // 2
            chosen = frozenset(tiny[:middle])
            rest = [use for use in self._uses if use.weight not in chosen]
            if self._nbytes(chosen) + self._ebbing.least_nbytes(rest) <= capacity_nbytes:
                low = middle
            else:
                high = middle - 1
        return frozenset(tiny[:low])

    def _fits(self, kept: Collection[int]) -> bool:
        """Whether the tables `kept` leave enough for what one moment needs of the weights that calls read whole."""
        return self._nbytes(kept) + self._ebbing.least_nbytes(self._uses) <= self._capacity_nbytes

    def _nbytes(self, weights: Collection[int]) -> int:
        return sum(self._problem.extent_nbytes(weight) for weight in weights)


def _tables_within(problem: Problem, tables: Collection[int], spare_nbytes: int) -> frozenset[int]:
    """The tables whose rows cost most per byte, as many as fit."""
    kept = set()
    for table in sorted(
        tables, key=lambda table: (-_row_seconds(problem, table) / problem.extent_nbytes(table), table)
    ):
        if _row_seconds(problem, table) > 0 and problem.extent_nbytes(table) <= spare_nbytes:
            kept.add(table)
            spare_nbytes -= problem.extent_nbytes(table)
    return frozenset(kept)


def _row_seconds(problem: Problem, table: int) -> float:
    """What a pass waits for the rows of `table`."""
    return problem.weights[table].row_seconds * sum(table in call.reads for call in problem.calls)
