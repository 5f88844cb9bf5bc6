"""What every planning strategy does. Subclass `StrategyConformance` and name one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning import Call, Plan, Problem, make_plan, simulate
from penstock.planning.bounds import least_warm_seconds
from penstock.planning.check import check

from ..planning.random_problems import chain, problems  # noqa: TID252

# The tests are methods that several classes inherit, each with a strategy of its own.
inherited = settings(suppress_health_check=[HealthCheck.differing_executors], max_examples=60)


class StrategyConformance(ABC):
    """A claim per test about the plans of one strategy.

    Attributes:
        streams_whatever_fits: it loads every layer in each pass, however much memory there is.
        needs: the package without which it does not plan.
    """

    streams_whatever_fits = False
    needs = ""

    @property
    @abstractmethod
    def name(self) -> str:
        """The strategy's name, as people give it."""

    @property
    def tight_nbytes(self) -> int | None:
        """A budget in which something has to stream of six layers of 5000 bytes; None where nothing ever does."""
        return 16_000

    @pytest.fixture(autouse=True)
    def _has_what_it_needs(self) -> None:
        if self.needs:
            pytest.importorskip(self.needs, reason=f"{self.name} plans with {self.needs}, which is not installed")

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

    @inherited
    @given(problem=problems(budget_from=0.2))
    def test_what_is_predicted_is_what_the_simulation_does(self, problem: Problem) -> None:
        try:
            plan = make_plan(problem, self.name)
        except BudgetInfeasibleError:
            return
        assert plan.prediction.peak_nbytes <= problem.budget_nbytes
        assert plan.prediction.warm_seconds >= least_warm_seconds(problem) * (1 - 1e-9)
        seconds = simulate(problem, plan, passes=61).pass_seconds
        assert seconds[0] == pytest.approx(plan.prediction.cold_seconds)
        assert sum(seconds[31:]) / 30 == pytest.approx(plan.prediction.warm_seconds, rel=0.05, abs=1e-9)

    @inherited
    @given(problem=problems(budget_from=0.2))
    def test_a_plan_survives_json(self, problem: Problem) -> None:
        try:
            plan = make_plan(problem, self.name)
        except BudgetInfeasibleError:
            return
        assert Plan.from_json(plan.to_json()) == plan
        assert plan.explain()

    def test_a_pass_without_calls_or_weights_has_a_plan(self) -> None:
        empty = replace(chain([10], [0.0], 100), calls=())
        assert make_plan(empty, self.name).prediction.warm_seconds == 0.0
        without = replace(chain([10], [1.0], 100), calls=(Call("c0", 1.0, (), 0),))
        assert make_plan(without, self.name).prediction.warm_seconds == 1.0

    @pytest.mark.parametrize("bytes_per_second", [1e-3, 1e15])
    def test_absurd_storage_speeds_have_a_plan(self, bytes_per_second: float) -> None:
        problem = chain([5000] * 6, [0.1] * 6, 100_000, bytes_per_second=bytes_per_second)
        assert make_plan(problem, self.name).prediction.warm_seconds >= problem.compute_seconds

    def test_with_room_for_everything_nothing_streams(self) -> None:
        plan = make_plan(chain([5000] * 6, [0.1] * 6, 100_000), self.name)
        assert len(plan.loads) == 6 * self.streams_whatever_fits
        assert len(plan.resident) == 6 * (not self.streams_whatever_fits)

    def test_within_half_of_it_something_streams(self) -> None:
        if self.tight_nbytes is None:
            with pytest.raises(BudgetInfeasibleError):
                make_plan(chain([5000] * 6, [0.1] * 6, 16_000), self.name)
            return
        plan = make_plan(chain([5000] * 6, [0.1] * 6, self.tight_nbytes), self.name)
        assert plan.loads
        assert plan.prediction.peak_nbytes <= self.tight_nbytes

    def test_a_foreign_plan_is_refused(self) -> None:
        problem = chain([5000] * 6, [0.1] * 6, 40_000)
        plan = make_plan(problem, self.name)
        with pytest.raises(PlanError):
            check(replace(problem, fingerprint="another"), plan)
