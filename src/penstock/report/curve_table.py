"""A curve as a table for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from penstock.report.curve import Curve, Point
from penstock.report.sizes import Scale, size_text, time_scale


def make_curve_table(curve: Curve) -> Table:
    """Budgets down, strategies across; the fastest of each row bold, empty where a strategy has no plan."""
    times = time_scale(max((point.predicted_seconds or 0.0 for point in curve.points), default=0.0))
    measured = any(point.measured_seconds is not None for point in curve.points)
    table = Table(title=f"{curve.model}: {curve.timed} in {times.unit}, by budget", title_justify="left")
    headers = ["budget", f"of the {curve.whole}", "lower bound", *curve.strategies, *(["measured"] if measured else [])]
    for header in headers:
        table.add_column(header, justify="right")
    bounds = dict(curve.bound())
    for budget_nbytes in curve.budgets:
        row = [point for point in curve.points if point.budget_nbytes == budget_nbytes]
        share = f"{budget_nbytes / curve.full_nbytes:.0%}" if curve.full_nbytes else ""
        cells: list[str | Text] = [
            size_text(budget_nbytes),
            share,
            _number(bounds.get(budget_nbytes), times),
            *_cells(row, times),
        ]
        if measured:
            cells.append(
                _number(next((p.measured_seconds for p in row if p.measured_seconds is not None), None), times)
            )
        table.add_row(*cells)
    return table


def _cells(row: list[Point], times: Scale) -> list[Text]:
    fastest = min((point.predicted_seconds for point in row if point.predicted_seconds is not None), default=None)
    best = _number(fastest, times) if len(row) > 1 else None
    numbers = [_number(point.predicted_seconds, times) for point in row]
    return [Text(number, style="bold" if number == best else "") for number in numbers]


def _number(seconds: float | None, times: Scale) -> str:
    if seconds is None:
        return ""
    value = seconds * times.factor
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
