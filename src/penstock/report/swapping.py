"""What training would cost within each budget, and what happens when in an iteration, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from penstock.errors import BudgetInfeasibleError
from penstock.planning.swap import METHODS, plan_swaps
from penstock.planning.swap_plan import SwapPlan
from penstock.planning.swap_problem import SwapProblem
from penstock.planning.swap_record import SwapRecord
from penstock.planning.swap_simulation import SimulatedSwaps, simulate_swaps
from penstock.report.curve import TRAINING, Curve, Point
from penstock.report.sizes import readable_nbytes, size_text
from penstock.report.timeline import COMPUTE, PASSES, STALLS, STORAGE, MemoryMoment, Span, Tracks

BUDGETS = 12
"""So many are looked at between the least and the one that needs nothing to leave."""

Progress = Callable[[int, int], None]


def swap_curve(
    record: SwapRecord,
    *,
    model: str = "model",
    budgets: Sequence[int] | None = None,
    scores: Sequence[str] | None = None,
    seconds: float = 0.5,
    progress: Progress | None = None,
) -> Curve:
    """What an iteration takes within each budget, by each way to choose what leaves.

    Args:
        record: of an iteration.
        model: what it is called.
        budgets: in bytes; if None, from the least that can work to the one in which all stays.
        scores: of `METHODS`; if None, all that need nothing that may not be installed.
        seconds: for each search.
        progress: called with (plans made, plans in all).

    Raises:
        PlanError: there is no such score.
    """
    problem, wanted = record.problem, tuple(scores if scores is not None else METHODS[:-1])
    chosen = sorted(set(budgets)) if budgets is not None else _budgets(record)
    points = []
    for step, budget_nbytes in enumerate(chosen):
        for number, name in enumerate(wanted):
            if progress is not None:
                progress(step * len(wanted) + number, len(chosen) * len(wanted))
            points.append(_point(record, budget_nbytes, name, seconds))
    return Curve(
        model=model,
        full_nbytes=record.budget_nbytes(problem.peak_nbytes),
        compute_seconds=problem.compute_seconds,
        bytes_per_second=problem.back.bytes_per_second,
        is_timed=True,
        points=tuple(points),
        task=TRAINING,
    )


def _budgets(record: SwapRecord) -> list[int]:
    """Even steps, so that savings can be read off."""
    least, full = (record.budget_nbytes(n) for n in (record.problem.least_nbytes(), record.problem.peak_nbytes))
    steps = [readable_nbytes(least + (full - least) * step // (BUDGETS - 1)) for step in range(BUDGETS)]
    return sorted(set(steps))


def _point(record: SwapRecord, budget_nbytes: int, name: str, seconds: float) -> Point:
    try:
        plan = plan_swaps(record.within(budget_nbytes), scores=name, seconds=seconds)
    except BudgetInfeasibleError as error:
        return Point(budget_nbytes, name, None, None, record.budget_nbytes(error.needed_nbytes))
    return Point(budget_nbytes, name, plan.predicted_seconds, plan.bound_seconds)


def swap_tracks(problem: SwapProblem, plan: SwapPlan, names: Sequence[str], title: str) -> Tracks:
    """An iteration that follows a plan, as predicted, after one that did, too.

    Args:
        problem: the iteration.
        plan: for it.
        names: of its segments.
        title: for the whole.
    """
    found = simulate_swaps(problem, plan.swaps)
    spans = [Span(PASSES, "iteration", 0.0, found.seconds)]
    for name, (begin, end, waited) in zip(names, found.segments, strict=True):
        spans.append(Span(COMPUTE, name, begin, end))
        if waited > 0:
            spans.append(Span(STALLS, name, begin - waited, begin))
    for what, transfers in (("write", found.writes), ("read", found.reads)):
        for index, begin, end in transfers:
            swap = plan.swaps[index]
            details = {"size": size_text(swap.nbytes), "for": names[swap.returns % plan.segments]}
            spans.append(Span(STORAGE, f"{what} storage {swap.storage}", begin, end, details))
    return Tracks(title, plan.limit_nbytes, tuple(spans), (), memory=tuple(_memory(problem, plan, found)))


def _memory(problem: SwapProblem, plan: SwapPlan, found: SimulatedSwaps) -> Iterator[MemoryMoment]:
    """What of the storages is in memory and what is away, from the begin of each segment on."""
    away = [0] * plan.segments
    for swap in plan.swaps:
        for segment in range(swap.gone_by, swap.reads_at):
            away[segment % plan.segments] += swap.nbytes
    for nbytes, gone, (begin, _, _) in zip(problem.load_nbytes.tolist(), away, found.segments, strict=True):
        yield MemoryMoment(begin, {"in memory": nbytes - gone, "away": gone})
