"""Training to look at: its curve, and a planned iteration as tracks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.planning.test_swap import problem
from tests.planning.test_swap_record import record

from penstock.errors import PlanError
from penstock.planning.swap import plan_swaps
from penstock.planning.swap_problem import Link
from penstock.report.curve import TRAINING, Curve
from penstock.report.curve_words import words_of
from penstock.report.swapping import swap_curve, swap_tracks
from penstock.report.timeline import COMPUTE, STALLS, STORAGE


def test_the_curve_goes_from_the_least_to_where_all_stays() -> None:
    slow = replace(problem(), out=Link(0.0, 30.0), back=Link(0.0, 30.0))
    curve = swap_curve(record(slow, overhead_nbytes=10))
    assert curve.task == TRAINING
    assert curve.budgets[0] == slow.least_nbytes() + 10
    assert curve.budgets[-1] >= curve.full_nbytes == 130
    best = [point.predicted_seconds for point in curve.of("best")]
    assert best == sorted(best, key=lambda seconds: -(seconds or 0))
    assert best[-1] == curve.compute_seconds == 6
    assert all(
        (point.predicted_seconds or 0) >= (mine or 0) - 1e-9
        for name in ("doa", "aoa", "wdoa", "swdoa")
        for point, mine in zip(curve.of(name), best, strict=True)
    )
    assert Curve.from_json(curve.to_json()) == curve
    assert "all stays within 130 B" in words_of(curve)[0]
    refused = swap_curve(record(slow, overhead_nbytes=10), budgets=[20, 130], scores=["doa"])
    assert refused.points[0].needed_nbytes == slow.least_nbytes() + 10
    with pytest.raises(PlanError, match="luck"):
        swap_curve(record(slow), scores=["luck"])


def test_tracks_show_transfers_and_what_waits_for_them() -> None:
    made = replace(problem(60), out=Link(0.0, 20.0), back=Link(0.0, 20.0))
    plan = plan_swaps(made)
    tracks = swap_tracks(made, plan, [f"segment {i}" for i in range(6)], "tiny")
    computed = [span for span in tracks.spans if span.track == COMPUTE]
    assert [span.name for span in computed] == [f"segment {i}" for i in range(6)]
    assert max(span.end_seconds for span in computed) == pytest.approx(plan.predicted_seconds)
    waited = sum(span.end_seconds - span.begin_seconds for span in tracks.spans if span.track == STALLS)
    assert waited == pytest.approx(plan.predicted_seconds - plan.compute_seconds)
    moved = [span for span in tracks.spans if span.track == STORAGE]
    assert len(moved) == 2 * len(plan.swaps)
    assert max(moment.nbytes["in memory"] for moment in tracks.memory) == plan.peak_nbytes
    assert [sum(moment.nbytes.values()) for moment in tracks.memory] == made.load_nbytes.tolist()
