"""A curve keeps its points, reads back from JSON, and says what they mean."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from penstock.errors import PlanError
from penstock.report import Curve, Point
from penstock.report.curve_table import make_curve_table
from penstock.report.curve_words import words_of

from .curves import MIB, some_curve


def test_a_curve_reads_back_from_json() -> None:
    curve = some_curve()
    assert Curve.from_json(curve.to_json()) == curve
    assert json.loads(curve.to_json())["points"][0]["measured_seconds"] == curve.points[0].measured_seconds


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 3, "curve.version"),
        (("model",), None, "curve.model"),
        (("surprise",), 1, "surprise"),
        (("points", 0, "budget_nbytes"), 0, "budget_nbytes"),
        (("points", 0, "predicted_seconds"), "fast", "predicted_seconds"),
        (("points", 0, "measured_seconds"), -1.0, "measured_seconds"),
        (("points", 1, "needed_nbytes"), 0.5, "needed_nbytes"),
    ],
)
def test_a_curve_from_elsewhere_is_checked(path: tuple[str | int, ...], value: object, message: str) -> None:
    fields = json.loads(some_curve().to_json())
    place = fields
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(PlanError, match=message):
        Curve.from_json(json.dumps(fields))


def test_the_bound_of_a_budget_holds_for_every_smaller_one() -> None:
    points = [Point(10, "a", 2.0, 1.0), Point(20, "a", 2.0, 1.5), Point(20, "b", 3.0, 1.6), Point(30, "a", 1.0, 0.5)]
    curve = replace(some_curve(), points=tuple(points))
    assert curve.bound() == ((10, 1.5), (20, 1.5), (30, 0.5))


def test_budgets_that_no_strategy_has_a_plan_for_are_bounded_by_larger_ones() -> None:
    points = (Point(10, "a", None, None, 15), Point(20, "a", 2.0, 1.5), Point(30, "a", None, None, 40))
    assert replace(some_curve(), points=points).bound() == ((10, 1.5), (20, 1.5))


def test_the_smallest_budget_within_an_overhead_is_found() -> None:
    curve = some_curve()
    assert curve.smallest_within(0.1) == curve.points[-2]
    assert curve.smallest_within(10.0) == curve.points[0]
    assert curve.smallest_within(0.0) is None


def test_measured_seconds_go_to_the_points_of_one_strategy() -> None:
    curve = some_curve().with_measured("sequential", {64 * MIB: 0.2, 1: 9.0}, ["late"])
    assert [point.measured_seconds for point in curve.of("sequential")] == [None, None, 0.2, None, None]
    assert curve.remarks[-1] == "late"


def test_the_table_shows_every_budget_and_leaves_out_what_has_no_plan() -> None:
    shown = io.StringIO()
    Console(width=120, file=shown).print(make_curve_table(some_curve()))
    lines = shown.getvalue().splitlines()
    first = next(line for line in lines if "24.0 MiB" in line)
    assert [cell.strip() for cell in first.strip("│ ").split("│")] == ["24.0 MiB", "20%", "100", "105", "", "110"]
    assert sum("MiB" in line for line in lines) == 5


def test_the_words_name_least_budget_knee_and_what_is_missing() -> None:
    words = "\n".join(words_of(some_curve()))
    assert "Least budget: 24.0 MiB, with optimal" in words
    assert "sequential from 55.0 MiB" in words
    assert "flashmem is left out" in words
    assert "estimate" not in words
    assert "estimates" in "\n".join(words_of(replace(some_curve(), is_timed=False)))
