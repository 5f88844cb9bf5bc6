"""A curve as one HTML file that needs no network: plotly's script is inside."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

from penstock.cache import atomic_write
from penstock.errors import PenstockError
from penstock.report.curve import INFERENCE, Curve, Point
from penstock.report.curve_words import words_of
from penstock.report.sizes import Scale, size_scale, size_text, size_ticks, time_scale, time_text
from penstock.report.style import BOUND_COLOR, import_plotly, lines_of

_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
body {{ margin: 0; padding: 1.5rem 2rem; font-family: {font}; color: #222; }}
h1 {{ margin: 0 0 0.3rem; font-size: 1.4rem; }}
p {{ margin: 0.2rem 0; color: #444; max-width: 70rem; line-height: 1.45; }}
#frame {{ height: 66vh; min-height: 24rem; margin: 0.6rem 0; }}
#frame > div {{ height: 100%; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>How long {timed} takes within each budget. The grey area lies below the lower bound. Point at the chart for
numbers; click a name to hide or show its line, double-click it to see it alone; drag to zoom, double-click the chart to
zoom out.</p>
<div id="frame">{chart}</div>
{words}
</body>
</html>
"""


def save_page(curve: Curve, path: str | Path) -> None:
    """Write `curve` as an interactive page to the file `path`.

    Raises:
        PenstockError: there is nothing to draw, or plotly is not installed.
    """
    path = Path(path)
    if not curve.bound():
        raise PenstockError(f"{path}: no strategy has a plan for any of these budgets, so there is nothing to draw")
    objects, io = import_plotly()
    sizes = size_scale(max(curve.budgets))
    times = time_scale(max(point.predicted_seconds or 0.0 for point in curve.points))
    figure = objects.Figure(_traces(objects, curve, sizes, times), _layout(curve, sizes, times))
    config = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetScale2d"]]}
    chart = io.to_html(figure, config=config, include_plotlyjs=True, full_html=False, div_id="chart")
    words = "\n".join(f"<p>{html.escape(line)}</p>" for line in words_of(curve))
    title = html.escape(f"{curve.model}: delay by budget")
    timed = f"{'a' if curve.task == INFERENCE else 'an'} {curve.timed}"
    with atomic_write(path) as file:
        file.write(_PAGE.format(title=title, timed=timed, font=_FONT, chart=chart, words=words).encode())


def _traces(objects: Any, curve: Curve, sizes: Scale, times: Scale) -> list[Any]:
    bound = curve.bound()
    traces = [
        objects.Scatter(
            x=[size * sizes.factor for size, _ in bound],
            y=[seconds * times.factor for _, seconds in bound],
            name="lower bound",
            mode="lines",
            fill="tozeroy",
            line={"color": BOUND_COLOR, "width": 1},
            fillcolor="rgba(140, 140, 140, 0.22)",
            hoverinfo="skip",
        )
    ]
    bounds = dict(bound)
    for strategy, line in lines_of(curve).items():
        points = [point for point in curve.of(strategy) if point.predicted_seconds is not None]
        trace = objects.Scatter(
            x=[point.budget_nbytes * sizes.factor for point in points],
            y=[(point.predicted_seconds or 0.0) * times.factor for point in points],
            name=html.escape(strategy),
            mode="lines+markers",
            line={"color": line.color, "width": line.width},
            marker={"symbol": line.symbol, "size": 7 if len(points) > 1 else 13},
            hovertext=[_hover(curve, point, bounds[point.budget_nbytes]) for point in points],
            hovertemplate="%{hovertext}<extra></extra>",
        )
        traces.append(trace)
    measured = [point for point in curve.points if point.measured_seconds is not None]
    if measured:
        trace = objects.Scatter(
            x=[point.budget_nbytes * sizes.factor for point in measured],
            y=[(point.measured_seconds or 0.0) * times.factor for point in measured],
            name="measured",
            mode="markers",
            marker={"symbol": "circle-open", "size": 12, "color": "black", "line": {"width": 2}},
            hovertext=[_hover(curve, point, bounds[point.budget_nbytes]) for point in measured],
            hovertemplate="%{hovertext}<extra></extra>",
        )
        traces.append(trace)
    return traces


def _hover(curve: Curve, point: Point, bound_seconds: float) -> str:
    """The lines of a box that says everything about one point."""
    share = f" ({point.budget_nbytes / curve.full_nbytes:.0%} of the {curve.whole})" if curve.full_nbytes else ""
    predicted = point.predicted_seconds or 0.0
    lines = [
        f"<b>{html.escape(point.strategy)}</b>",
        f"budget {size_text(point.budget_nbytes)}{share}",
        f"predicted {time_text(predicted)}",
        f"lower bound {time_text(bound_seconds)}",
    ]
    if curve.compute_seconds:
        lines.append(f"overhead {predicted / curve.compute_seconds - 1:.1%} over one that never waits")
    if point.measured_seconds is not None:
        lines.append(f"measured {time_text(point.measured_seconds)}")
    return "<br>".join(lines)


def _layout(curve: Curve, sizes: Scale, times: Scale) -> dict[str, Any]:
    ticks = [nbytes * sizes.factor for nbytes in size_ticks(curve.budgets)]
    edge = 0.02 * math.log10(max(curve.budgets) / min(curve.budgets)) + 1e-3
    axis = {
        "showgrid": True,
        "gridcolor": "#e6e6e6",
        "zeroline": False,
        "showline": True,
        "linecolor": "#999",
        "automargin": True,
    }
    return {
        "template": "none",
        "font": {"family": _FONT, "size": 14, "color": "#222"},
        "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "align": "left", "font": {"family": _FONT}},
        "legend": {"itemsizing": "constant"},
        "xaxis": {
            **axis,
            "title": {"text": f"budget ({sizes.unit})", "standoff": 12},
            "type": "log",
            "tickvals": ticks,
            "ticktext": [f"{tick:g}" for tick in ticks],
            "range": [
                math.log10(min(curve.budgets) * sizes.factor) - edge,
                math.log10(max(curve.budgets) * sizes.factor) + edge,
            ],
        },
        "yaxis": {**axis, "title": {"text": f"{curve.timed} ({times.unit})", "standoff": 12}, "rangemode": "tozero"},
    }
