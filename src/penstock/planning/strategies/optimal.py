"""What stays, what streams, in which parts and how much space they share, chosen together.

More space for the stream lets loads run further ahead; more residents leave less to load; loads in parts need less
space, and so do weights that are computed slice by slice, at the price of other last bits; small weights that come
together cost computing less, and take more space; memory that activations need only now and then can hold weights in
between, at the price of getting its pages anew. Which of these a byte serves best depends on model, storage and budget,
so the search tries them and simulates every choice exactly, until one is as good as `bounds` says that any can be.
Deterministic throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, tee

from penstock.planning.bounds import least_warm_seconds
from penstock.planning.ebbs import level_candidates, needed_nbytes, needed_with, page_nbytes
from penstock.planning.joining import Join, join
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem
from penstock.planning.slicing import Cut
from penstock.planning.strategies.candidates import STORAGE_SLOWDOWN
from penstock.planning.strategies.cutting import list_divisions
from penstock.planning.strategies.fitting import Fitting
from penstock.planning.strategies.grouping import list_joins

_GOOD_ENOUGH = 1.01
_WORTHWHILE = {"cut": 0.99, "ebb": 0.98}
"""Cuts change last bits and ebbs cost page faults in every pass: what they save has to be worth that."""
_LEVELS_TRIED, _SAVING = 4, 16
"""Levels of activations, and which part of the arena one has to save."""
_WORK, _FAR, _MORE = 300, 1.03, 4
"""Calls of all problems that are solved for one plan, some 0.2 s; so many times as many as long as the best is further
from the bound."""


@dataclass(frozen=True)
class Optimal:
    """The strategy `"optimal"`.

    Attributes:
        exact: no layer is computed in slices, so that every bit is the resident model's.
        steadiness: how much a pass with storage half as fast counts, beside one with storage as it was measured. Drives
            and hosts give half of it from one moment to the next: a ResNet-152 in half of its memory stalled 30 of 165
            ms with the plan that is best where they never do.
    """

    exact: bool = False
    steadiness: float = 0.3

    name = "optimal"

    def needed_nbytes(self, problem: Problem) -> int:
        """See `registry.Strategy`."""
        return needed_nbytes(problem, sliced=not self.exact)

    def plan(self, problem: Problem) -> Plan:
        """See `registry.Strategy`."""
        bound = least_warm_seconds(problem)
        best: Plan | None = None
        work = 0
        for variant, fitting, call_count in self._variants(problem, bound):
            if best is not None and _is_enough(best.prediction.warm_seconds / (bound or 1.0), work):
                break
            plan = variant.of(fitting.plan(self.name))
            work += call_count
            if best is None or _is_better(plan, best):
                best = plan
        return best or self._least(problem, bound)

    def _least(self, problem: Problem, bound: float) -> Plan:
        """A plan where there is room for nothing but what one call after another needs."""
        division = next(division for division in self._divisions(problem, bound) if not division.joins)
        level_nbytes = min(level_candidates(problem))
        return division.of(Fitting(division.problem, bound, level_nbytes, 0.0).least_plan(self.name))

    def _variants(self, problem: Problem, bound: float) -> Iterator[tuple[_Division, Fitting, int]]:
        """Ways to divide weights and memory that have a plan, the likeliest first, with how long each is to solve."""
        goal = bound + self.steadiness * least_warm_seconds(_with_slow_storage(problem))
        most, *smaller = _levels(problem)
        for levels, divisions in zip(((most,), smaller), tee(self._divisions(problem, bound)), strict=True):
            for division in divisions:
                for level_nbytes in levels:
                    fitting = Fitting(division.problem, goal, level_nbytes, self.steadiness)
                    if fitting.is_feasible:
                        yield division, fitting, len(division.problem.calls)

    def _divisions(self, problem: Problem, bound: float) -> Iterator[_Division]:
        """Ways to divide the weights in which they fit: large joins, none, small joins, and slices if they may be."""
        plain = _Division(problem)
        if plain.has_room:
            found = iter(()) if _all_fits(problem) else list_joins(problem)
            divisions = (_Division(join(problem, joins).problem, joins) for joins in found)
            joined = (division for division in divisions if division.has_room)
            yield from islice(joined, 1)
            yield plain
            yield from joined
        if not self.exact:
            for cuts, divided in list_divisions(problem, bound):
                yield _Division(divided.problem, cuts=cuts)


@dataclass(frozen=True, slots=True)
class _Division:
    """One way to divide weights, and the problem that it makes."""

    problem: Problem
    joins: tuple[Join, ...] = ()
    cuts: tuple[Cut, ...] = ()

    @property
    def has_room(self) -> bool:
        """Whether what one moment needs of the weights fits."""
        return needed_with(self.problem, self.problem.extent_nbytes) <= self.problem.budget_nbytes

    def of(self, plan: Plan) -> Plan:
        """`plan`, which is for `problem`, as one for the problem that is divided so."""
        return replace(plan, joins=self.joins, cuts=self.cuts)


def _all_fits(problem: Problem) -> bool:
    """Whether nothing has to stream: then nothing is read together with what lies between."""
    read = {weight for call in problem.calls for weight in call.reads if not problem.weights[weight].rows_only}
    nbytes = sum(problem.extent_nbytes(weight) for weight in read)
    return nbytes + problem.reserve.total_nbytes <= problem.budget_nbytes


def _is_enough(ratio: float, work: int) -> bool:
    """Whether to stop at a plan that takes `ratio` times the bound, after so much work."""
    return ratio <= _GOOD_ENOUGH or work > _WORK * (_MORE if ratio > _FAR else 1)


def _with_slow_storage(problem: Problem) -> Problem:
    storage = problem.storage
    slow = replace(
        storage,
        bytes_per_second=storage.bytes_per_second / STORAGE_SLOWDOWN,
        request_seconds=storage.request_seconds * STORAGE_SLOWDOWN,
        read_compute_share=storage.read_compute_share / STORAGE_SLOWDOWN,
    )
    return replace(problem, storage=slow)


def _levels(problem: Problem) -> list[int]:
    """Activations that have room beside the whole arena: all, and some smaller levels, which save a lot."""
    most, *smaller = level_candidates(problem)
    arena_nbytes = problem.budget_nbytes - problem.reserve.total_nbytes
    apart: list[int] = []
    for level in reversed(smaller):
        is_apart = not apart or level - apart[-1] >= page_nbytes(problem)  # or the same pages ebb
        if is_apart and most - level > max(arena_nbytes, 0) // _SAVING:
            apart.append(level)
    return [most, *apart[:: max(1, -(-len(apart) // _LEVELS_TRIED))]]


def _is_better(plan: Plan, best: Plan) -> bool:
    """Whether `plan` is faster by as much as it has to be for what it does and the best so far does not."""
    factor = 1.0
    if plan.cuts and not best.cuts:
        factor *= _WORTHWHILE["cut"]
    if plan.ebbs and not best.ebbs:
        factor *= _WORTHWHILE["ebb"]
    return plan.prediction.warm_seconds < factor * best.prediction.warm_seconds
