from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning import Plan, Problem, Reserve, make_plan

from .ebbing import ring_plan
from .random_problems import chain, problems


def _streaming_plan() -> Plan:
    plan = make_plan(chain([4096] * 8, [1e-5] * 8, 5 * 4096))
    assert plan.loads
    assert plan.resident
    return plan


@given(problems(budget_from=0.2))
@settings(max_examples=40, deadline=None)
def test_a_plan_survives_json(problem: Problem) -> None:
    try:
        plan = make_plan(problem)
    except BudgetInfeasibleError:
        return
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"plan"', "[" * 100_000, b"\xff\xfe\x00"])
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(PlanError, match="plan"):
        Plan.from_json(text)


def _objects(value: Any, path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Every object within parsed JSON, the first of each list only, and its path."""
    if isinstance(value, dict):
        yield value, path
        for name, item in value.items():
            yield from _objects(item, f"{path}.{name}")
    elif isinstance(value, list) and value:
        yield from _objects(value[0], f"{path}[0]")


def _with(edit: str, path: str, field: str) -> str:
    """The streaming plan's text, with one field of one object dropped, or replaced by the JSON `edit`."""
    whole = json.loads(_ebbing_plan().to_json())
    for item, found in _objects(whole, "plan"):
        if found == path:
            if edit:
                item[field] = json.loads(edit)
            else:
                del item[field]
    return json.dumps(whole)


def _ebbing_plan() -> Plan:
    problem = chain([4096] * 8, [1e-5] * 8, 5 * 4096, block_nbytes=4096)
    calls = (replace(problem.calls[0], activations_nbytes=4096), *problem.calls[1:])
    plan = ring_plan(replace(problem, calls=calls, reserve=Reserve(4096, 0, 0)), 0, {7})
    assert plan is not None
    assert plan.loads
    assert plan.resident
    assert plan.ebbs
    return plan


FIELDS = [(path, field) for item, path in _objects(json.loads(_ebbing_plan().to_json()), "plan") for field in item]


@pytest.mark.parametrize(
    "edit", ["", "null", "{}", "true", "-7", "1e400", "NaN", '"x"', "[{}]", "[null]", "1" + "0" * 400]
)
def test_every_field_is_validated_and_named(edit: str) -> None:
    texts = {("plan", "strategy"), ("plan", "problem_fingerprint")}
    for path, field in FIELDS:
        if edit == '"x"' and (path, field) in texts:
            continue
        with pytest.raises(PlanError, match=field):
            Plan.from_json(_with(edit, path, field))


@pytest.mark.parametrize(
    ("path", "field", "edit"),
    [
        ("plan", "version", "2"),
        ("plan.loads[0]", "weight", "8"),
        ("plan.loads[0]", "first_call", "8"),
        ("plan.loads[0]", "after_call", "8"),
        ("plan.loads[0]", "after_pass", "1"),
        ("plan.loads[0]", "offset", "20481"),
        ("plan.resident[0]", "offset", "20481"),
        ("plan.ebbs[0]", "offset", "20481"),
        ("plan.ebbs[0]", "nbytes", "20481"),
        ("plan.ebbs[0]", "last_call", "8"),
        ("plan", "call_activations_nbytes", "[-1]"),
        ("plan", "rows", "[8]"),
    ],
)
def test_indices_stay_within_what_the_plan_names(path: str, field: str, edit: str) -> None:
    with pytest.raises(PlanError, match=field):
        Plan.from_json(_with(edit, path, field))


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(PlanError, match="surprise"):
        Plan.from_json(_with("1", "plan", "surprise"))


def test_a_plan_explains_its_budget_its_weights_and_its_stalls() -> None:
    text = make_plan(chain([4 << 20] * 8, [1e-3] * 8, 20 << 20)).explain()
    for part in (
        "budget of 20.0 MiB",
        "resident",
        "streamed",
        "read per pass",
        "predicted",
        "lower bound",
        "peak",
        "Memory at its peak",
        "all together",
        "wait",
    ):
        assert part in text
    assert "w0" in text
    assert "c0" in text or "c1" in text


def test_a_resident_plan_explains_that_no_call_waits() -> None:
    text = make_plan(chain([4096] * 4, [1e-3] * 4, 1 << 20)).explain()
    assert "no call waits" in text
    assert "read per pass" not in text
