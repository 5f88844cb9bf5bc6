"""FlashMem's strategy: a static plan of which chunk of which weight moves during which call, by constraint programming.

Shu et al., "FlashMem: Supporting Modern DNN Workloads on Mobile with GPU Memory Hierarchy Optimizations", ASPLOS 2026
(arXiv 2602.15379). See `overlap` for the plan, `overlap_solver` for CP-SAT. Of its two moves, from disk to host and
from host to device, there is one here, from storage to where the layer computes. As in the paper, a weight that a
pass's first calls read has no calls before it, and is preloaded; it is not moved at the end of the pass before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from penstock.budget import format_size
from penstock.errors import PlanError
from penstock.planning.kinds import SLOWDOWNS
from penstock.planning.lifetimes import Use, largest_live_nbytes, needed_nbytes, streamable_uses
from penstock.planning.options import PlanOptions
from penstock.planning.plan import PLANNED, Plan
from penstock.planning.problem import Call, Problem
from penstock.planning.strategies.layout import finish
from penstock.planning.strategies.overlap import Item, Overlap, Overlapped
from penstock.planning.strategies.overlap_greedy import best_greedy, on_demand
from penstock.planning.strategies.overlap_layout import lay_out_moves
from penstock.planning.strategies.overlap_solver import FEASIBLE, load_solver, solve
from penstock.planning.strategies.whole import capacity_nbytes, extents_nbytes, keep_tiny, list_tables

_RELAXED = (1.0, 2.0, 4.0, 8.0, None)  # times the load capacity, in turn; None: without a limit
_DOUBTFUL_SHARE = 0.15  # of the time, for a load capacity with which nothing was found by hand
_LEAST_CHUNK_NBYTES, _MOST_CHUNK_NBYTES = 256 << 10, 16 << 20
_LOOKBACK = 48  # calls before its own in which a stay may be begun: from there on a longer way is never the cheapest


@dataclass(frozen=True)
class FlashMem:
    """The strategy `"flashmem"`. Where the time limit ends the search, two runs may find two plans.

    Attributes:
        lam: lambda. Below one half, a preloaded weight costs less than the shortest move, and W grows until
            nothing fits; towards 1 as much as possible is moved in every pass.
        peak_nbytes: M_peak, for the weights in memory at once; None: what the budget leaves.
        time_limit_seconds: for the solver.
        chunk_nbytes: S, about; None: a quarter of what a typical call has load capacity for.
    """

    lam: float = 0.25
    peak_nbytes: int | None = None
    time_limit_seconds: float = 10.0
    chunk_nbytes: int | None = None

    name = "flashmem"

    def told(self, options: PlanOptions) -> FlashMem:
        """This strategy with what `options` say of it."""
        return replace(
            self,
            lam=self.lam if options.lam is None else options.lam,
            peak_nbytes=options.peak_nbytes or self.peak_nbytes,
            time_limit_seconds=options.time_limit_seconds or self.time_limit_seconds,
        )

    def needed_nbytes(self, problem: Problem) -> int:
        """See `registry.Strategy`."""
        return needed_nbytes(problem, sliced=False)

    def plan(self, problem: Problem) -> Plan:
        """See `registry.Strategy`.

        Raises:
            PlanError: `ortools` is not installed, or M_peak is less than one moment needs.
        """
        load_solver()
        problem = self._within_peak(problem)
        uses = streamable_uses(problem)
        kept = keep_tiny(problem, uses, lambda rest: largest_live_nbytes(problem, rest))
        overlap = self._overlap(problem, [use for use in uses if use.weight not in kept], kept)
        found = _climb(overlap, self.time_limit_seconds)
        return _to_plan(problem, self.name, kept, overlap, found)

    def _within_peak(self, problem: Problem) -> Problem:
        """`problem` with no more budget than M_peak lets be used."""
        if self.peak_nbytes is None:
            return problem
        least_nbytes, reserve_nbytes = self.needed_nbytes(problem), problem.reserve.total_nbytes
        if reserve_nbytes + self.peak_nbytes < least_nbytes:
            raise PlanError(
                f"peak_nbytes is {self.peak_nbytes} ({format_size(self.peak_nbytes)}), but one moment needs weights of "
                f"{least_nbytes - reserve_nbytes} bytes: give at least that"
            )
        return replace(problem, budget_nbytes=min(problem.budget_nbytes, reserve_nbytes + self.peak_nbytes))

    def _overlap(self, problem: Problem, uses: Sequence[Use], kept: frozenset[int]) -> Overlap:
        total_nbytes = 2 * extents_nbytes(problem, {use.weight for use in uses})
        capacity = [min(_load_capacity(problem, call), total_nbytes) for call in problem.calls]
        chunk_nbytes = self._chunk(problem, capacity)
        items = []
        ended: dict[int, int] = {}  # the last call of a weight's stay before
        for use in uses:
            extent_nbytes = problem.extent_nbytes(use.weight)
            is_moved = problem.weights[use.weight].is_moved
            chunks = 1 if is_moved else -(-extent_nbytes // chunk_nbytes)
            even_nbytes = _whole_blocks(problem, -(-extent_nbytes // chunks))
            earliest = max(0, use.first - _LOOKBACK, ended.get(use.weight, -1) + 1)
            ended[use.weight] = use.last
            chunks = -(-extent_nbytes // even_nbytes)
            items.append(Item(use.weight, use.first, use.last, earliest, chunks, even_nbytes))
        cap_nbytes = min(capacity_nbytes(problem) - extents_nbytes(problem, kept), 2 * total_nbytes)
        live = [0] * len(problem.calls)  # in whole chunks, which may be a little more than the bytes that have to fit
        for item in items:
            for call in range(item.first, item.last + 1):
                live[call] += item.held_nbytes
        caps = tuple(max(cap_nbytes, nbytes) for nbytes in live)
        return Overlap(tuple(items), tuple(capacity), caps, self.lam)

    def _chunk(self, problem: Problem, capacity: Sequence[int]) -> int:
        nbytes = self.chunk_nbytes
        if nbytes is None:
            typical = statistics.median([one for one in capacity if one] or [0])
            nbytes = min(max(int(typical / 4), _LEAST_CHUNK_NBYTES), _MOST_CHUNK_NBYTES)
        return _whole_blocks(problem, nbytes)


def _load_capacity(problem: Problem, call: Call) -> int:
    """C: what was measured to fit beside the call, else what storage brings while it may become longer, in bytes."""
    if call.load_nbytes is not None:
        return call.load_nbytes
    return int(SLOWDOWNS[call.kind] * call.seconds * problem.storage.bytes_per_second)


@dataclass(frozen=True)
class _Found:
    """A solution, the step of the ladder that it is from, what is known of its quality, and what it was to keep to."""

    solution: Overlapped
    step: str
    status: str
    bound: float


def _climb(overlap: Overlap, limit_seconds: float) -> _Found:
    """The paper's ladder: the solver, with more and more load capacity; more preloaded weights; by hand."""
    deadline = time.monotonic() + limit_seconds
    for factor in _RELAXED:
        relaxed = overlap.relaxed(factor)
        left = deadline - time.monotonic()
        if left <= 0:
            break
        if relaxed.is_hopeless():
            continue
        start = best_greedy(relaxed)
        solved = solve(relaxed, start, left if start.keeps(relaxed) else min(left, limit_seconds * _DOUBTFUL_SHARE))
        if solved.solution is not None:
            return _Found(solved.solution, f"solver{_times(factor)}", solved.status, solved.bound)
    for factor in _RELAXED:
        relaxed = overlap.relaxed(factor)
        solution = best_greedy(relaxed)
        if solution.keeps(relaxed):
            return _Found(solution, f"more preloaded{_times(factor)}", FEASIBLE, relaxed.least_objective())
    return _Found(solution, "by hand, with loads on demand", FEASIBLE, relaxed.least_objective())


def _times(factor: float | None) -> str:
    if factor == 1:
        return ""
    return ", without load capacity" if factor is None else f", {factor:g} times the load capacity"


def _to_plan(problem: Problem, name: str, kept: frozenset[int], overlap: Overlap, found: _Found) -> Plan:
    solution = found.solution
    resident = kept | solution.preloaded
    streamed = [(item, moves) for item, moves in solution.pairs(overlap) if moves]
    left_nbytes = capacity_nbytes(problem) - extents_nbytes(problem, resident)
    preloaded_nbytes = sum(nbytes for weight, nbytes in overlap.held_by().items() if weight in solution.preloaded)
    moving_nbytes = max(solution.held_nbytes(overlap), default=0) - preloaded_nbytes
    loads, region_nbytes, late = lay_out_moves(problem, streamed, min(moving_nbytes, left_nbytes), left_nbytes)
    details = [
        ("step", found.step),
        ("status", found.status),
        ("objective", f"{solution.objective(overlap):.6g}"),
        ("bound", f"{found.bound:.6g}"),
        ("lambda", f"{overlap.lam:g}"),
        ("|W|", str(len(solution.preloaded))),
        ("on demand", str(on_demand(overlap, solution))),
        ("moved late", f"{late} of {len(loads)} loads, for want of space in one piece"),
    ]
    return finish(problem, name, resident, list_tables(problem), loads, region_nbytes, pacing=PLANNED, details=details)


def _whole_blocks(problem: Problem, nbytes: int) -> int:
    block = problem.storage.block_nbytes
    return -(-nbytes // block) * block
