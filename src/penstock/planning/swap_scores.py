"""AutoSwap's scores: which absences are worth the most (Zhang et al., arXiv 1903.06631, section on AutoSwap).

Each is as the paper has it, not as its authors' program: that subtracted the time out twice, lost what it worked out
for the weighted score, and looked at a single peak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from penstock.planning.swap_problem import Absence, Floats, SwapProblem

Order = Callable[[SwapProblem], tuple[Absence, ...]]


def duration_of_absence(problem: SwapProblem, absence: Absence) -> float:
    """DOA: seconds that a storage can be away, without those of its transfers."""
    return problem.hidden_seconds(absence)


def area_of_absence(problem: SwapProblem, absence: Absence) -> float:
    """AOA: byte-seconds; where nothing hides the transfers, the larger storage is the better one."""
    seconds = problem.hidden_seconds(absence)
    return seconds * absence.nbytes if seconds >= 0 else seconds / absence.nbytes


def weighted_duration(problem: SwapProblem, absence: Absence, excess_nbytes: Floats | None = None) -> float:
    """WDOA: what exceeds the limit during the absence, in byte-seconds.

    Args:
        problem: what is to be decided.
        absence: of which.
        excess_nbytes: (n,) what exceeds it, if other than in the beginning.
    """
    if excess_nbytes is None:
        excess_nbytes = excess(problem, ())
    return float(problem.during(absence, excess_nbytes * problem.seconds).sum())


def excess(problem: SwapProblem, chosen: Sequence[Absence]) -> Floats:
    """(n,) bytes above the limit in each segment with `chosen` away."""
    present_nbytes = problem.load_nbytes - problem.away_nbytes(chosen)
    above: Floats = np.maximum(present_nbytes - problem.limit_nbytes, 0).astype(np.float64)
    return above


def ordered_by(score: Callable[[SwapProblem, Absence], float]) -> Order:
    """Absences by a score, the best first; equal ones in the order of the iteration."""

    def order(problem: SwapProblem) -> tuple[Absence, ...]:
        values = {absence: score(problem, absence) for absence in problem.absences}
        return tuple(sorted(problem.absences, key=lambda absence: -values[absence]))

    return order


def by_weighted_duration(problem: SwapProblem) -> tuple[Absence, ...]:
    """Absences by WDOA."""
    first = excess(problem, ())
    return ordered_by(lambda problem, absence: weighted_duration(problem, absence, first))(problem)


def by_submodular_duration(problem: SwapProblem) -> tuple[Absence, ...]:
    """Absences by SWDOA: WDOA anew after each choice, with what is chosen away. The rest, worth nothing, by WDOA."""
    absences = problem.absences
    leaves, returns = (np.array([getattr(a, name) for a in absences], dtype=np.int64) for name in ("leaves", "returns"))
    present_nbytes = problem.load_nbytes.copy()
    is_left = np.ones(len(absences), dtype=bool)
    chosen: list[Absence] = []
    while is_left.any():
        above = np.maximum(present_nbytes - problem.limit_nbytes, 0) * problem.seconds
        total = np.concatenate([[0.0], np.cumsum(np.tile(above, 2))])
        values = np.where(is_left, total[returns] - total[leaves], -1.0)
        best = int(np.argmax(values))
        if values[best] <= 0:
            break
        is_left[best] = False
        chosen.append(absences[best])
        present_nbytes -= problem.away_nbytes([absences[best]])
    taken = set(chosen)
    return (*chosen, *(absence for absence in by_weighted_duration(problem) if absence not in taken))


def normalised(problem: SwapProblem) -> Floats:
    """(4, absences) DOA, AOA, WDOA, SWDOA, each between 0 and 1: what a weighted sum of them goes by.

    SWDOA is the place in its order, because its values belong to the moments at which each was chosen.
    """
    first = excess(problem, ())
    places = {absence: place for place, absence in enumerate(reversed(by_submodular_duration(problem)))}
    rows = [
        [duration_of_absence(problem, absence) for absence in problem.absences],
        [area_of_absence(problem, absence) for absence in problem.absences],
        [weighted_duration(problem, absence, first) for absence in problem.absences],
        [float(places[absence]) for absence in problem.absences],
    ]
    table = np.array(rows, dtype=np.float64).reshape(4, len(problem.absences))
    if table.shape[1] == 0:
        return table
    low, high = table.min(axis=1, keepdims=True), table.max(axis=1, keepdims=True)
    scaled: Floats = (table - low) / np.where(high > low, high - low, 1.0)
    return scaled


def order_by(problem: SwapProblem, weights: Sequence[float], scores: Floats) -> tuple[Absence, ...]:
    """Absences by the weighted sum of four `normalised` scores."""
    values = np.asarray(weights, dtype=np.float64) @ scores
    return tuple(problem.absences[index] for index in np.argsort(-values, kind="stable"))


SCORES: dict[str, Order] = {
    "doa": ordered_by(duration_of_absence),
    "aoa": ordered_by(area_of_absence),
    "wdoa": by_weighted_duration,
    "swdoa": by_submodular_duration,
}
"""The paper's four, by the names under which they are asked for."""
