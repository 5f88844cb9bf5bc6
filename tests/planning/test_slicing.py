from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.errors import PlanError
from penstock.planning import Call, Problem, Weight, check, make_plan
from penstock.planning.slicing import Cut, cut_evenly, divide, finest_extent_nbytes, slice_limit

from .random_problems import chain

MEGABYTE = 1 << 20


def _problem() -> Problem:
    """Three layers; the second has a bias and a weight of ten rows, and the first is around it."""
    base = chain([4096, 10_000, 512], [1.0, 5.0, 1.0], 100_000)
    weights = (base.weights[0], replace(base.weights[1], rows=10, offset_in_block=100), Weight("bias", 40))
    calls = (Call("outer", 1.0, (0,), 1), Call("middle", 5.0, (1, 2), 1), Call("last", 1.0, (0,), 2))
    return replace(base, weights=weights, calls=calls, slice_seconds=0.25)


def test_a_layer_in_slices_is_a_call_around_a_call_for_each_slice() -> None:
    divided = divide(_problem(), [Cut(1, (4, 8))])
    names = [call.name for call in divided.problem.calls]
    assert names == ["outer", "middle", "middle[0:4]", "middle[4:8]", "middle[8:10]", "last"]
    assert [call.last for call in divided.problem.calls] == [4, 4, 2, 3, 4, 5]
    read = [[divided.problem.weights[weight].name for weight in call.reads] for call in divided.problem.calls]
    assert read == [["w0"], ["bias"], ["w1[0:4]"], ["w1[4:8]"], ["w1[8:10]"], ["w0"]]
    assert [call.seconds for call in divided.problem.calls] == pytest.approx([1.0, 0.0, 2.25, 2.25, 1.25, 1.0])
    layers = [("outer", None), ("middle", None), ("middle", 1), ("middle", 2), ("middle", 3), ("last", None)]
    assert list(divided.layers) == layers


def test_what_can_be_loaded_during_a_layer_can_be_loaded_during_its_slices() -> None:
    problem = _problem()
    calls = tuple(replace(call, kind="elemental", load_nbytes=1000) for call in problem.calls)
    divided = divide(replace(problem, calls=calls), [Cut(1, (4, 8))]).problem.calls
    assert [call.load_nbytes for call in divided] == [1000, 0, 400, 400, 200, 1000]
    assert {call.kind for call in divided} == {"elemental"}


def test_slices_lie_where_the_weight_lies() -> None:
    slices = divide(_problem(), [Cut(1, (4, 8))]).problem.weights[1:4]
    assert [item.nbytes for item in slices] == [4000, 4000, 2000]
    assert [item.offset_in_block for item in slices] == [100, 4100 % 512, 8100 % 512]


def test_an_explanation_names_the_layers_in_slices() -> None:
    head = Weight("head", 8 * MEGABYTE, rows=8)
    base = chain([MEGABYTE, 8 * MEGABYTE], [1.0, 1.0], 4 * MEGABYTE)
    calls = (replace(base.calls[0], name="body"), replace(base.calls[1], name="layers.3.head"))
    plan = make_plan(replace(base, weights=(base.weights[0], head), calls=calls))
    assert [line.split() for line in plan.explain().splitlines() if "in slices" in line] == [
        ["in", "slices", "1", "layer:", "layers.3.head"]
    ]
    assert "in slices" not in make_plan(replace(base, budget_nbytes=20 * MEGABYTE)).explain()


def test_without_cuts_nothing_changes() -> None:
    assert divide(_problem(), []).problem == _problem()


@pytest.mark.parametrize("cut", [Cut(9, (1,)), Cut(1, ()), Cut(1, (4, 4)), Cut(1, (10,)), Cut(0, (1,)), Cut(-1, (1,))])
def test_a_cut_that_cannot_be_is_refused(cut: Cut) -> None:
    with pytest.raises(PlanError, match=r"cut"):
        divide(_problem(), [cut])
    plan = make_plan(_problem())
    with pytest.raises(PlanError, match=r"cut"):
        check(_problem(), replace(plan, cuts=(cut,)))


def test_a_weight_cut_twice_is_refused() -> None:
    with pytest.raises(PlanError, match="twice"):
        divide(_problem(), [Cut(1, (4,)), Cut(1, (5,))])


def test_only_a_leaf_goes_through_slices_and_through_those_of_one_weight() -> None:
    problem = _problem()
    with pytest.raises(PlanError, match="slice by slice"):
        replace(problem, calls=(replace(problem.calls[0], reads=(1,)), *problem.calls[1:]))
    with pytest.raises(PlanError, match="slice by slice"):
        replace(problem, weights=(problem.weights[0], problem.weights[1], replace(problem.weights[2], rows=2)))


def test_slices_are_not_made_smaller_than_is_worth_a_read() -> None:
    weight = Weight("head", 10 * MEGABYTE, rows=1024 * 1024)
    assert slice_limit(weight) == 10
    assert len(cut_evenly(weight, 0, 10).rows) == 9
    problem = replace(chain([10 * MEGABYTE], [1.0], 1), weights=(weight,))
    largest = max(divide(problem, [cut_evenly(weight, 0, 10)]).problem.weights, key=lambda item: item.nbytes)
    assert MEGABYTE <= largest.nbytes <= finest_extent_nbytes(problem, 0) <= largest.nbytes + 1024
