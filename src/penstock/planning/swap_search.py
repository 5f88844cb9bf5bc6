"""Our own choice of what leaves: every peak in turn, nothing needless, and exchanges where the iteration waits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from penstock.planning.swap_problem import Absence, Floats, SwapProblem
from penstock.planning.swap_schedule import Schedule, stick_to_limit
from penstock.planning.swap_scores import excess


def reached(problem: SwapProblem) -> tuple[Absence, ...]:
    """Absences that bring every segment within the limit, as far as any can, by transfers alone."""
    return _filled(problem, [], list(problem.absences))[0]


def reached_by_both(problem: SwapProblem) -> tuple[Absence, ...] | None:
    """The same, with some computed again where transfers would be waited for; None if that is not within the limit."""
    found, is_within = _filled(problem, [], [*problem.absences, *problem.recomputable])
    return found if is_within else None


def _go_together(problem: SwapProblem, one: Absence, other: Absence) -> bool:
    """Whether both can be away: what is computed again needs its sources, and nothing leaves in two ways."""
    if one.storage == other.storage:
        return one.leaves != other.leaves
    needs = one.storage in other.sources and problem.covers(one, other.returns)
    return not (needs or (other.storage in one.sources and problem.covers(other, one.returns)))


def _filled(problem: SwapProblem, kept: list[Absence], left: list[Absence]) -> tuple[tuple[Absence, ...], bool]:
    """`kept`, and what of `left` has to leave besides; whether that is within the limit.

    At the segment that exceeds it most, the next is the one that takes most of what exceeds off the iteration for a
    byte of transfer; where something waits for each of them, the one that is waited for least.
    """
    while True:
        above = excess(problem, kept)
        worst = int(np.argmax(above))
        if above[worst] <= 0:
            return tuple(kept), True
        covering = [absence for absence in left if problem.covers(absence, worst)]
        if not covering:
            return tuple(kept), False
        taken = max(covering, key=lambda absence: _worth(problem, absence, above))
        kept.append(taken)
        left = [absence for absence in left if absence is not taken and _go_together(problem, absence, taken)]


def _worth(problem: SwapProblem, absence: Absence, above: Floats) -> tuple[bool, float, bool]:
    taken_off = float(problem.during(absence, np.minimum(above, absence.nbytes) * problem.seconds).sum())
    hidden = problem.hidden_seconds(absence)
    is_hidden = hidden >= 0
    return is_hidden, taken_off / absence.nbytes if is_hidden else hidden, absence.recompute_seconds is not None


def without_needless(problem: SwapProblem, chosen: Sequence[Absence]) -> tuple[Absence, ...]:
    """Without those that the limit does not need, the costliest first."""
    kept = list(chosen)
    for absence in sorted(chosen, key=lambda absence: (problem.hidden_seconds(absence) >= 0, -absence.nbytes)):
        rest = [other for other in kept if other is not absence]
        if not excess(problem, rest).any():
            kept = rest
    return tuple(kept)


def exchanged(problem: SwapProblem, chosen: Sequence[Absence], deadline: float) -> Schedule:
    """The schedule after all exchanges of a chosen absence for others, or none, that make the iteration shorter."""
    best, schedule = tuple(chosen), stick_to_limit(problem, chosen)
    assert schedule is not None, "what is within the limit has a schedule"
    is_better = True
    while is_better and schedule.seconds > problem.compute_seconds * (1 + 1e-6):
        is_better = False
        for given_up in sorted(best, key=problem.hidden_seconds):
            if time.monotonic() > deadline:
                return schedule
            for other in _instead(problem, best, given_up):
                found = stick_to_limit(problem, other)
                if found is not None and found.seconds < schedule.seconds * (1 - 1e-9):
                    best, schedule, is_better = other, found, True
                    break
            if is_better:
                break
    return schedule


def _instead(problem: SwapProblem, chosen: Sequence[Absence], given_up: Absence) -> Iterator[tuple[Absence, ...]]:
    """Choices without one absence: with others for it, or with something computed again."""
    kept = [absence for absence in chosen if absence is not given_up]
    taken = set(chosen)
    everything = (a for a in (*problem.absences, *problem.recomputable) if a not in taken)
    left = [a for a in everything if all(_go_together(problem, a, other) for other in kept)]
    for first in (None, *(a for a in left if a.recompute_seconds is not None)):
        begun = kept if first is None else [*kept, first]
        others = left if first is None else [a for a in left if a is not first and _go_together(problem, a, first)]
        found, is_within = _filled(problem, list(begun), others)
        if is_within:
            yield found
