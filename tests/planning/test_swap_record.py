"""A recorded iteration as a file, and what its budgets are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning.test_swap import problem, problems

from penstock.errors import PlanError
from penstock.planning.swap_problem import SwapProblem
from penstock.planning.swap_record import SwapRecord, kept_free


def record(made: SwapProblem, overhead_nbytes: int | None = None) -> SwapRecord:
    names = tuple(f"segment {i}" for i in range(made.count))
    return SwapRecord(made, names, overhead_nbytes, {"parameters": 7, "gradients": 5})


@given(problems(), st.none() | st.integers(0, 1000))
def test_what_is_written_is_read_again(made: SwapProblem, overhead_nbytes: int | None) -> None:
    before = record(made, overhead_nbytes)
    after = SwapRecord.from_json(before.to_json())
    assert np.array_equal(after.problem.seconds, made.seconds)
    assert np.array_equal(after.problem.load_nbytes, made.load_nbytes)
    assert (after.problem.absences, after.problem.recomputable) == (made.absences, made.recomputable)
    assert (after.problem.out, after.problem.back) == (made.out, made.back)
    assert (after.names, after.overhead_nbytes, after.kinds) == (before.names, before.overhead_nbytes, before.kinds)
    assert after.problem.limit_nbytes >= made.peak_nbytes


@given(st.integers(1, 1 << 40), st.none() | st.integers(0, 1 << 30))
def test_the_budget_for_a_limit_is_the_least_that_leaves_it(limit_nbytes: int, overhead_nbytes: int | None) -> None:
    made = record(problem(), overhead_nbytes)
    budget_nbytes = made.budget_nbytes(limit_nbytes)
    least_nbytes = made.problem.least_nbytes()
    if overhead_nbytes is None and limit_nbytes >= least_nbytes:  # a guess refuses nothing
        assert made.within(limit_nbytes).limit_nbytes >= least_nbytes
    assert budget_nbytes - kept_free(budget_nbytes, overhead_nbytes) >= limit_nbytes
    assert budget_nbytes - 2 - kept_free(budget_nbytes - 2, overhead_nbytes) < limit_nbytes


@pytest.mark.parametrize(
    "change",
    [
        {"version": 9},
        {"seconds": ["x"]},
        {"load_nbytes": []},
        {"absences": [{}]},
        {"out": {}},
        {"more": 1},
        {"names": 3},
        {"names": ["one"]},
        {"kinds": [["x"]]},
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        SwapRecord.from_json(json.dumps(json.loads(record(problem()).to_json()) | change))
