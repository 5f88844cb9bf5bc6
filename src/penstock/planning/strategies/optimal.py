"""What stays, what streams, in which parts and how much space they share, chosen together.

More space for the stream lets loads run further ahead; more residents leave less to load; loads in parts need less
space, and so do weights that are computed slice by slice, at the price of other last bits. Which of these a byte serves
best depends on model, storage and budget, so `search` tries them and simulates every choice exactly, until one is as
good as `bounds` says that any can be. Deterministic throughout.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from penstock.planning.bounds import least_warm_seconds
from penstock.planning.lifetimes import largest_live_nbytes, list_uses, needed_nbytes
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem
from penstock.planning.strategies.candidates import Bench, Candidate
from penstock.planning.strategies.chunks import list_loads
from penstock.planning.strategies.cutting import list_divisions
from penstock.planning.strategies.layout import finish
from penstock.planning.strategies.search import Search

_TRIALS = 24
_TABLES_TRIED = 2
_GOOD_ENOUGH = 1.01
WORTHWHILE = 0.99
"""A resident table is all loaded in the cold pass: what it saves in later ones has to be worth that. So has a cut,
which changes last bits."""


class Optimal:
    """The strategy `"optimal"`."""

    name = "optimal"

    def needed_nbytes(self, problem: Problem) -> int:
        """See `registry.Strategy`."""
        return needed_nbytes(problem, sliced=True)

    def plan(self, problem: Problem) -> Plan:
        """See `registry.Strategy`."""
        bound = least_warm_seconds(problem)
        best: Plan | None = None
        if needed_nbytes(problem, sliced=False) <= problem.budget_nbytes:
            best = self._uncut(problem, bound)
        for cuts, divided in list_divisions(problem):
            if best is not None and best.prediction.warm_seconds <= _GOOD_ENOUGH * bound:
                break
            plan = replace(self._uncut(divided.problem, bound), cuts=cuts)
            if best is None or plan.prediction.warm_seconds < WORTHWHILE * best.prediction.warm_seconds:
                best = plan
        if best is None:
            raise AssertionError(f"no plan in {problem.budget_nbytes} bytes, which are enough")
        return best

    def _uncut(self, problem: Problem, bound: float) -> Plan:
        """The best plan that cuts nothing, with the tables that are worth their space."""
        read = {weight for call in problem.calls for weight in call.reads}
        tables = {weight for weight in read if problem.weights[weight].rows_only}
        kept: frozenset[int] = frozenset()
        spare_nbytes = _capacity_nbytes(problem) - sum(problem.extent_nbytes(weight) for weight in read - tables)
        if spare_nbytes >= 0:  # nothing has to stream, so nothing is made to
            kept = _tables_within(problem, tables, spare_nbytes)
            return self._plan(problem, read - tables, kept, tables - kept, bound)
        best = self._plan(problem, read - tables, kept, tables, bound)
        for table in sorted(tables, key=lambda weight: (-_row_seconds(problem, weight), weight))[:_TABLES_TRIED]:
            if _row_seconds(problem, table) > 0 and _fits(problem, kept | {table}, tables):
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
            return finish(problem, self.name, {*whole, *kept}, sorted(rows), [], 0)
        small = _small_residents(problem, capacity_nbytes, whole, problem.tiny_nbytes)
        rest_nbytes = capacity_nbytes - sum(problem.extent_nbytes(weight) for weight in small)
        found = _best_candidate(problem, rest_nbytes, kept | small, rows, bound)
        loads = list_loads(problem, found.uses, found.starts, found.chunks)
        return finish(problem, self.name, kept | small | found.residents, sorted(rows), loads, found.region_nbytes)


def _fits(problem: Problem, kept: frozenset[int], tables: Collection[int]) -> bool:
    """Whether the tables `kept` leave enough for what one moment needs of the weights that calls read whole."""
    kept_nbytes = sum(problem.extent_nbytes(weight) for weight in kept)
    uses = list_uses(problem, merged=False)
    return kept_nbytes + largest_live_nbytes(problem, uses, tables) <= _capacity_nbytes(problem)


def _best_candidate(
    problem: Problem, capacity_nbytes: int, fixed: Collection[int], rows: Collection[int], bound: float
) -> Candidate:
    bench = Bench(problem, capacity_nbytes, fixed, rows, merged=False)
    benches = [bench]
    merged = Bench(problem, capacity_nbytes, fixed, rows, merged=True)
    if merged.uses != bench.uses:
        benches.append(merged)
    best = bench.try_least()
    for one in benches:
        found = Search(one, bound).run(_TRIALS // len(benches))
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
