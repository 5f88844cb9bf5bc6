"""Points of a curve that were really run: warm passes of a streamed model, in a process of its own for each budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from penstock.arms import ArmError, ArmSpec, alternate, open_arms
from penstock.report.sizes import size_text

POINTS = 5
ROUNDS = 7
LEARNING_ROUNDS = 4
"""A process times layers and measures memory in its first passes, and plans again with what it has learnt."""

Progress = Callable[[int, int], None]


def learn(spec: ArmSpec, budget_nbytes: int) -> None:
    """Run the model often enough that layer times and memory of such calls are known, and kept.

    Raises:
        ArmError: it cannot run within the budget.
    """
    with open_arms([replace(spec, budget_nbytes=budget_nbytes)]) as arms:
        alternate(arms, LEARNING_ROUNDS)


def measure_points(
    spec: ArmSpec, budgets: Sequence[int], progress: Progress | None = None
) -> tuple[dict[int, float], list[str]]:
    """The median seconds of `ROUNDS` warm passes within each budget in bytes, and a remark on each that failed."""
    seconds: dict[int, float] = {}
    remarks: list[str] = []
    for done, budget_nbytes in enumerate(budgets):
        if progress is not None:
            progress(done, len(budgets))
        try:
            with open_arms([replace(spec, budget_nbytes=budget_nbytes)]) as arms:
                alternate(arms, LEARNING_ROUNDS)
                (result,) = alternate(arms, ROUNDS)
        except ArmError as error:
            remarks.append(f"not measured at {size_text(budget_nbytes)}: {error}")
        else:
            seconds[budget_nbytes] = result.median_seconds
    return seconds, remarks


def spread(budgets: Sequence[int]) -> list[int]:
    """At most `POINTS` of the budgets, the first and the last among them, evenly by place."""
    if len(budgets) <= POINTS:
        return list(budgets)
    return [budgets[round(place * (len(budgets) - 1) / (POINTS - 1))] for place in range(POINTS)]
