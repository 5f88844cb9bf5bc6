"""What every planning strategy does. Subclass `StrategyConformance` and name one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning import Problem, make_plan
from penstock.planning.check import check

from ..planning.random_problems import chain, problems  # noqa: TID252

# The tests are methods that several classes inherit, each with a strategy of its own.
inherited = settings(suppress_health_check=[HealthCheck.differing_executors], max_examples=60)


class StrategyConformance(ABC):
    """A claim per test about the plans of one strategy."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The strategy's name, as people give it."""

    @inherited
    @given(problem=problems())
    def test_any_problem_is_solved_soundly_or_refused_with_the_true_minimum(self, problem: Problem) -> None:
        try:
            plan = make_plan(problem, self.name)
        except BudgetInfeasibleError as error:
            enough = replace(problem, budget_nbytes=max(error.needed_nbytes, problem.budget_nbytes + 1))
            check(enough, make_plan(enough, self.name))
            with pytest.raises(BudgetInfeasibleError):
                make_plan(replace(problem, budget_nbytes=error.needed_nbytes - 1), self.name)
        else:
            check(problem, plan)

    @inherited
    @given(problem=problems(), factor=st.floats(1.0, 3.0))
    def test_more_memory_never_makes_it_impossible(self, problem: Problem, factor: float) -> None:
        try:
            make_plan(problem, self.name)
        except BudgetInfeasibleError:
            return
        make_plan(replace(problem, budget_nbytes=int(problem.budget_nbytes * factor) + 1), self.name)

    @inherited
    @given(problem=problems(budget_from=0.3))
    def test_the_same_problem_gets_the_same_plan(self, problem: Problem) -> None:
        try:
            first = make_plan(problem, self.name)
        except BudgetInfeasibleError:
            return
        assert make_plan(problem, self.name) == first

    def test_with_room_for_everything_nothing_streams(self) -> None:
        plan = make_plan(chain([5000] * 6, [0.1] * 6, 100_000), self.name)
        assert not plan.loads
        assert len(plan.resident) == 6

    def test_within_half_of_it_something_streams(self) -> None:
        plan = make_plan(chain([5000] * 6, [0.1] * 6, 16_000), self.name)
        assert plan.loads
        assert plan.prediction.peak_nbytes <= 16_000

    def test_a_foreign_plan_is_refused(self) -> None:
        problem = chain([5000] * 6, [0.1] * 6, 16_000)
        plan = make_plan(problem, self.name)
        with pytest.raises(PlanError):
            check(replace(problem, fingerprint="another"), plan)
