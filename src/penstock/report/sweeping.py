"""From problem to curve: every strategy at every budget that makes sense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from penstock.errors import BudgetError, BudgetInfeasibleError, PenstockError, PlanError
from penstock.planning import Plan, Problem, make_plan
from penstock.planning.strategies import names
from penstock.report.curve import Curve, Point
from penstock.report.sizes import readable_nbytes, size_text

_LOWER_BUDGETS, _UPPER_BUDGETS = 10, 5

Make = Callable[[Problem, str], Plan]
Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def sweep(
    problem_at: Callable[[int], Problem],
    *,
    model: str = "model",
    is_timed: bool = True,
    budgets: Sequence[int] | None = None,
    strategies: Sequence[str] | None = None,
    make: Make = make_plan,
    progress: Progress | None = None,
) -> Curve:
    """What each strategy predicts at each budget.

    Args:
        problem_at: the problem that a budget in bytes poses; only budget and reserve may differ.
        budgets: in bytes; if None, about sixteen from the least that any strategy can use to all weights and the
            reserve.
        strategies: by name; if None, all. Of these one that fails is left out and told of in `remarks`.
        make: makes a plan.

    Raises:
        BudgetError: no budgets.
        PlanError: no strategies; there is no such one; or one of those named cannot plan.
    """
    if budgets is not None and not budgets:
        raise BudgetError("a sweep over no budgets: give some, or None to have them chosen")
    if strategies is not None and not strategies:
        raise PlanError(f"a sweep over no strategies: give some of {', '.join(names())}, or None for all")
    wanted = tuple(dict.fromkeys(strategies)) if strategies is not None else names()
    bench = _Bench(problem_at, wanted, make, strategies is not None)
    chosen = sorted(set(budgets)) if budgets is not None else bench.choose_budgets()
    points: list[Point] = []
    for step, budget_nbytes in enumerate(chosen):
        for number, strategy in enumerate(wanted):
            if progress is not None:
                progress(step * len(wanted) + number, len(chosen) * len(wanted))
            points += bench.try_one(budget_nbytes, strategy)
    problem = problem_at(max(chosen))
    return Curve(
        model=model,
        full_nbytes=sum(weight.nbytes for weight in problem.weights),
        compute_seconds=problem.compute_seconds,
        bytes_per_second=problem.storage.bytes_per_second,
        is_timed=is_timed,
        points=tuple(point for point in points if point.strategy not in bench.failed),
        remarks=tuple(f"{strategy} is left out: {reason}" for strategy, reason in bench.failed.items()),
    )


def find_budgets(
    problem_at: Callable[[int], Problem], strategies: Sequence[str] | None = None, make: Make = make_plan
) -> list[int]:
    """The budgets that `sweep` chooses, in bytes, ascending."""
    wanted = tuple(strategies) if strategies is not None else names()
    return _Bench(problem_at, wanted, make, strategies is not None).choose_budgets()


class _Bench:
    """Tries strategies at budgets, each pair once."""

    def __init__(
        self, problem_at: Callable[[int], Problem], strategies: Sequence[str], make: Make, is_strict: bool
    ) -> None:
        self._problem_at, self._strategies, self._make, self._is_strict = problem_at, strategies, make, is_strict
        self._tried: dict[tuple[int, str], Point] = {}
        self.failed: dict[str, str] = {}

    def try_one(self, budget_nbytes: int, strategy: str) -> Iterator[Point]:
        """The point, or none if the strategy fails for another reason than the budget."""
        if strategy in self.failed:
            return
        key = budget_nbytes, strategy
        try:
            if key not in self._tried:
                self._tried[key] = self._point(budget_nbytes, strategy)
        except PenstockError as error:
            if self._is_strict:
                raise
            self.failed[strategy] = f"at {size_text(budget_nbytes)}: {error}"
            return
        yield self._tried[key]

    def _point(self, budget_nbytes: int, strategy: str) -> Point:
        try:
            prediction = self._make(self._problem_at(budget_nbytes), strategy).prediction
        except BudgetInfeasibleError as error:
            return Point(budget_nbytes, strategy, None, None, error.needed_nbytes)
        return Point(budget_nbytes, strategy, prediction.warm_seconds, prediction.lower_bound_seconds)

    def choose_budgets(self) -> list[int]:
        """See `choose_budgets`; the least that some strategy can use is found by asking each."""
        full_nbytes = self._full_nbytes()
        refusals = {strategy: point for strategy in self._strategies for point in self.try_one(1, strategy)}
        least_nbytes: int | None = None
        for strategy in sorted(refusals, key=lambda name: refusals[name].needed_nbytes or 1):
            if least_nbytes is None or (refusals[strategy].needed_nbytes or 1) < least_nbytes:
                found = self._least_nbytes(strategy, refusals[strategy])
                least_nbytes = min((one for one in (least_nbytes, found) if one is not None), default=None)
        return choose_budgets(least_nbytes or full_nbytes, full_nbytes)

    def _least_nbytes(self, strategy: str, point: Point) -> int | None:
        """What a refusal names is enough, unless the reserve grows with the budget; then it is not far from enough."""
        while point.needed_nbytes is not None:
            budget_nbytes = readable_nbytes(max(point.needed_nbytes, point.budget_nbytes + 1))
            tried = next(self.try_one(budget_nbytes, strategy), None)
            if tried is None:
                return None
            point = tried
        return point.budget_nbytes

    def _full_nbytes(self) -> int:
        """A budget that holds every weight and the reserve, which may grow with the budget."""
        problem = self._problem_at(1)
        weights_nbytes = sum(problem.extent_nbytes(weight) for weight in range(len(problem.weights)))
        budget_nbytes = max(1, weights_nbytes)
        while (needed := weights_nbytes + self._problem_at(budget_nbytes).reserve.total_nbytes) > budget_nbytes:
            budget_nbytes = readable_nbytes(needed)
        return budget_nbytes


def choose_budgets(least_nbytes: int, full_nbytes: int) -> list[int]:
    """About sixteen budgets from the least to the full one, in bytes, ascending, at sizes that read well.

    Up to half of the full one each is the same factor above the one before, from there on they are a tenth of it apart:
    a curve bends where little memory is added to little, and where the last weights become resident.
    """
    least_nbytes = readable_nbytes(least_nbytes)
    full_nbytes = readable_nbytes(max(full_nbytes, least_nbytes))
    fineness_nbytes = min(least_nbytes / 16, (full_nbytes - least_nbytes) / 32)
    grain_nbytes = 2 ** math.floor(math.log2(max(1, fineness_nbytes)))
    low_nbytes = max(full_nbytes / 2, least_nbytes)
    factor = (low_nbytes / least_nbytes) ** (1 / _LOWER_BUDGETS)
    between = [least_nbytes * factor**step for step in range(1, _LOWER_BUDGETS)]
    steps = _UPPER_BUDGETS if factor > 1 else _LOWER_BUDGETS + _UPPER_BUDGETS
    between += [low_nbytes + (full_nbytes - low_nbytes) * step / steps for step in range(steps)]
    rounded = (math.ceil(nbytes / grain_nbytes) * grain_nbytes for nbytes in between)
    inside = {nbytes for nbytes in rounded if least_nbytes < nbytes < full_nbytes}
    return sorted({least_nbytes, *inside, full_nbytes})
