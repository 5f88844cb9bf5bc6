from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings

from penstock.errors import PlanError
from penstock.planning import Call, Problem, Reserve, Storage, Weight

from .random_problems import chain, problems


def test_an_extent_is_whole_blocks_around_the_weight() -> None:
    problem = replace(chain([1], [0.0], 10_000), weights=(Weight("w", 513, offset_in_block=511),))
    assert problem.extent_nbytes(0) == 1024
    problem = replace(problem, weights=(Weight("w", 514, offset_in_block=511),))
    assert problem.extent_nbytes(0) == 1536


@given(problems())
@settings(max_examples=40, deadline=None)
def test_a_problem_survives_json(problem: Problem) -> None:
    assert Problem.from_json(problem.to_json()) == problem


NAN = float("nan")
BAD_PARTS = [
    ("bytes_per_second", {"storage": Storage(0.0, 0.0)}),
    ("bytes_per_second", {"storage": Storage(NAN, 0.0)}),
    ("bytes_per_second", {"storage": Storage(1e18, 0.0)}),
    ("copy_bytes_per_second", {"storage": Storage(1.0, 0.0, 512, 0.0)}),
    ("copy_bytes_per_second", {"storage": Storage(1.0, 0.0, 512, NAN)}),
    ("regain_bytes_per_second", {"storage": Storage(1.0, 1.0, regain_bytes_per_second=0.0)}),
    ("regain_bytes_per_second", {"storage": Storage(1.0, 1.0, regain_bytes_per_second=1e18)}),
    ("page_nbytes", {"storage": Storage(1.0, 1.0, page_nbytes=0)}),
    ("slice_seconds", {"slice_seconds": -1.0}),
    ("request_seconds", {"storage": Storage(1.0, -1.0)}),
    ("block_nbytes", {"storage": Storage(1.0, 0.0, 0)}),
    ("budget_nbytes", {"budget_nbytes": 0}),
    ("tiny_nbytes", {"tiny_nbytes": -1}),
    ("activations_nbytes", {"reserve": Reserve(-1, 0, 0)}),
    (r"weights\[0\].*nbytes", {"weights": (Weight("w0", 0), Weight("w1", 1))}),
    (r"weights\[1\].*offset_in_block", {"weights": (Weight("w0", 1), Weight("w1", 1, 512))}),
    (r"weights\[1\].*requests", {"weights": (Weight("w0", 1), Weight("w1", 1, requests=-1))}),
    (r"weights\[0\].*row_seconds", {"weights": (Weight("w0", 1, row_seconds=NAN), Weight("w1", 1))}),
    (r"calls\[0\].*seconds", {"calls": (Call("c", -0.1, (), 0),)}),
    (r"calls\[0\].*last", {"calls": (Call("c", 0.1, (), 1),)}),
    (r"calls\[1\].*last", {"calls": (Call("c", 0.1, (), 0), Call("d", 0.1, (), 0))}),
    (r"calls\[0\].*reads", {"calls": (Call("c", 0.1, (2,), 0),)}),
    (r"calls\[0\].*reads", {"calls": (Call("c", 0.1, (1, 1), 0),)}),
    (r"weights\[0\].*rows", {"weights": (Weight("w0", 10, rows=3), Weight("w1", 1))}),
    (r"weights\[0\].*rows", {"weights": (Weight("w0", 10, rows=0), Weight("w1", 1))}),
    (r"calls\[0\].*activations_nbytes", {"calls": (Call("c", 0.1, (), 0, 1),)}),
    (r"calls\[0\].*kind", {"calls": (Call("c", 0.1, (), 0, kind="fast"),)}),
    (r"calls\[0\].*load_nbytes", {"calls": (Call("c", 0.1, (), 0, load_nbytes=-1),)}),
    (r"calls\[1\].*nest", {"calls": (Call("c", 0.1, (), 1), Call("d", 0.1, (), 2), Call("e", 0.1, (), 2))}),
]


@pytest.mark.parametrize(("named", "parts"), BAD_PARTS)
def test_nonsense_is_refused_by_name(named: str, parts: dict[str, object]) -> None:
    good = chain([10, 10], [0.1, 0.1], 10_000)
    with pytest.raises(PlanError, match=named):
        replace(good, **parts)


def test_every_field_of_a_problem_is_validated_and_named() -> None:
    text = chain([10, 10], [0.1, 0.1], 10_000).to_json()
    for field, edit in (
        ("nbytes", '"10"'),
        ("requests", "true"),
        ("seconds", "NaN"),
        ("reads", "{}"),
        ("last", "1e0"),
        ("kind", '"fast"'),
        ("load_nbytes", "0.5"),
        ("rows_only", "0"),
        ("bytes_per_second", "null"),
        ("regain_bytes_per_second", "NaN"),
        ("page_nbytes", "0.5"),
        ("budget_nbytes", "-1"),
        ("fingerprint", "7"),
    ):
        broken = re.sub(rf'"{field}": [^,}}\]]+\]?', f'"{field}": {edit}', text, count=1)
        assert broken != text
        with pytest.raises(PlanError, match=field):
            Problem.from_json(broken)
