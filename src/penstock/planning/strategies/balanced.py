"""Residents spread so that loads are spread evenly, and a streaming region no larger than it has to be.

More space for the stream lets loads run further ahead; more residents leave less to load. Which of the two a byte
serves best depends on the model, so `search` tries both and simulates every choice exactly. Deterministic throughout.
"""

from __future__ import annotations

from collections.abc import Collection

from penstock.planning.bounds import least_warm_seconds
from penstock.planning.lifetimes import largest_live_nbytes, list_uses, needed_nbytes
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem
from penstock.planning.strategies.candidates import SLOW_SHARE, STORAGE_SLOWDOWN, Bench, Candidate
from penstock.planning.strategies.layout import assemble, lay_out_least
from penstock.planning.strategies.search import search

_WORK = 16_000  # uses placed and simulated: a quarter of a second or so
_LEAST_TRIALS = 8
_TABLES_TRIED = 2
_SMALL_NBYTES = (256 << 10, 1 << 20, 2 << 20, 4 << 20)
WORTHWHILE = 0.99
"""A resident table is all loaded in the cold pass: what it saves in later ones has to be worth that."""


class Balanced:
    """The strategy `"balanced"`."""

    name = "balanced"

    def needed_nbytes(self, problem: Problem) -> int:
        """See `registry.Strategy`."""
        return needed_nbytes(problem, sliced=False)

    def plan(self, problem: Problem) -> Plan:
        """See `registry.Strategy`."""
        read = {weight for call in problem.calls for weight in call.reads}
        tables = {weight for weight in read if problem.weights[weight].rows_only}
        bound = least_warm_seconds(problem)
        bound += SLOW_SHARE * least_warm_seconds(problem, storage_slowdown=STORAGE_SLOWDOWN)
        kept: frozenset[int] = frozenset()
        spare_nbytes = _capacity_nbytes(problem) - sum(problem.extent_nbytes(weight) for weight in read - tables)
        if spare_nbytes >= 0:  # nothing has to stream, so nothing is made to
            kept = _tables_within(problem, tables, spare_nbytes)
            return self._plan(problem, read - tables, kept, tables - kept, bound)
        best = self._plan(problem, read - tables, kept, tables, bound)
        for table in sorted(tables, key=lambda weight: (-_row_seconds(problem, weight), weight))[:_TABLES_TRIED]:
            if _row_seconds(problem, table) > 0 and self._fits(problem, kept | {table}, tables):
                plan = self._plan(problem, read - tables, kept | {table}, tables - kept - {table}, bound)
                if plan.prediction.warm_seconds < WORTHWHILE * best.prediction.warm_seconds:
                    best, kept = plan, kept | {table}
        return best

    def _plan(
        self, problem: Problem, whole: Collection[int], kept: frozenset[int], rows: Collection[int], bound: float
    ) -> Plan:
        """The best plan in which the tables `kept` are resident and `rows` are not."""
        capacity_nbytes = _capacity_nbytes(problem) - sum(problem.extent_nbytes(weight) for weight in kept)
        if sum(problem.extent_nbytes(weight) for weight in whole) <= capacity_nbytes:
            nothing = lay_out_least([], [], len(problem.calls))
            return assemble(problem, self.name, {*whole, *kept}, sorted(rows), nothing)
        choices = {_small_residents(problem, capacity_nbytes, whole, problem.tiny_nbytes)}
        for small_nbytes in _SMALL_NBYTES:  # large weights alone take fewer loads for as many bytes
            small = _small_residents(problem, capacity_nbytes, whole, small_nbytes)
            if all(weight in small for weight in whole if problem.weights[weight].nbytes <= small_nbytes):
                choices.add(small)
        tried = []
        for small in sorted(choices, key=len):
            rest_nbytes = capacity_nbytes - sum(problem.extent_nbytes(weight) for weight in small)
            found = _best_candidate(problem, rest_nbytes, kept | small, rows, bound, _WORK // len(choices))
            tried.append((found, small))
        candidate, small = min(tried, key=lambda pair: pair[0].rank)
        return assemble(problem, self.name, kept | small | candidate.residents, sorted(rows), candidate.layout)

    def _fits(self, problem: Problem, kept: frozenset[int], tables: Collection[int]) -> bool:
        """Whether the tables `kept` leave enough for what one moment needs of the weights that calls read whole."""
        kept_nbytes = sum(problem.extent_nbytes(weight) for weight in kept)
        uses = list_uses(problem, merged=False)
        return kept_nbytes + largest_live_nbytes(problem, uses, tables) <= _capacity_nbytes(problem)


def _best_candidate(
    problem: Problem, capacity_nbytes: int, fixed: Collection[int], rows: Collection[int], bound: float, work: int
) -> Candidate:
    bench = Bench(problem, capacity_nbytes, fixed, rows, merged=False)
    benches = [bench]
    merged = Bench(problem, capacity_nbytes, fixed, rows, merged=True)
    if merged.uses != bench.uses:
        benches.append(merged)
    best = bench.try_least()
    for one in benches:
        found = search(one, bound, max(work // len(benches), _LEAST_TRIALS * len(one.uses)))
        if found is not None and found.rank < best.rank:
            best = found
    return best


def _small_residents(
    problem: Problem, capacity_nbytes: int, whole: Collection[int], small_nbytes: int
) -> frozenset[int]:
    """The smallest weights up to `small_nbytes`, as many as leave room for what one moment needs of all others."""
    uses = [use for use in list_uses(problem, merged=False) if use.weight in whole]
    tiny = [weight for weight in whole if problem.weights[weight].nbytes <= small_nbytes]
    tiny.sort(key=lambda weight: (problem.extent_nbytes(weight), weight))
    low, high = 0, len(tiny)
    while low < high:  # each that stays takes at least what it saves, so the total only grows
        middle = (low + high + 1) // 2
        chosen = frozenset(tiny[:middle])
        nbytes = sum(problem.extent_nbytes(weight) for weight in chosen)
        if nbytes + largest_live_nbytes(problem, uses, chosen) <= capacity_nbytes:
            low = middle
        else:
            high = middle - 1
    return frozenset(tiny[:low])


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


def _capacity_nbytes(problem: Problem) -> int:
    return problem.budget_nbytes - problem.reserve.total_nbytes
