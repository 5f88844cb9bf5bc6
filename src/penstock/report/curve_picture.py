"""A curve as a picture, PNG or SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.cache import atomic_write
from penstock.errors import PenstockError
from penstock.report.curve import Curve
from penstock.report.curve_words import facts_of
from penstock.report.sizes import Scale, size_scale, size_ticks, time_scale
from penstock.report.style import BOUND_COLOR, import_matplotlib, lines_of

KINDS = (".png", ".svg")
_SIZE_INCHES = (9.0, 5.2)
_DPI = 160
_ROOM = 1.06  # of the slowest point, so that it does not touch the frame


def save_picture(curve: Curve, path: str | Path) -> None:
    """Draw `curve` into the file `path`, whose ending says how: `.png` or `.svg`. The same curve gives the same file.

    Raises:
        PenstockError: another ending; nothing to draw; or matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix not in KINDS:
        raise PenstockError(f"{path}: a picture ends in {' or '.join(KINDS)}")
    if not curve.bound():
        raise PenstockError(f"{path}: no strategy has a plan for any of these budgets, so there is nothing to draw")
    matplotlib = import_matplotlib()
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure

    with matplotlib.rc_context({"svg.hashsalt": "penstock", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        _draw(figure.add_subplot(), curve)
        metadata = {"Software": None} if path.suffix == ".png" else {"Date": None}
        with atomic_write(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=_DPI, metadata=metadata)


def _draw(axes: Any, curve: Curve) -> None:
    sizes = size_scale(max(curve.budgets))
    times = time_scale(max(point.predicted_seconds or 0.0 for point in curve.points))
    _draw_bound(axes, curve, sizes, times)
    for strategy, line in lines_of(curve).items():
        points = [(p.budget_nbytes * sizes.factor, p.predicted_seconds) for p in curve.of(strategy)]
        planned = [(size, seconds * times.factor) for size, seconds in points if seconds is not None]
        if planned:
            is_lone = len(planned) == 1  # a point without a line would vanish below the others
            style = {"color": line.color, "linewidth": line.width, "marker": line.marker}
            order = 4 if is_lone else 2 + line.width / 10
            size = 9 if is_lone else 4.5
            axes.plot(*zip(*planned, strict=True), label=strategy, zorder=order, markersize=size, **style)
    _draw_measured(axes, curve, sizes, times)
    _label(axes, curve, sizes, times)


def _draw_bound(axes: Any, curve: Curve, sizes: Scale, times: Scale) -> None:
    bound = [(size * sizes.factor, seconds * times.factor) for size, seconds in curve.bound()]
    columns = list(zip(*bound, strict=True))
    axes.fill_between(*columns, 0, color=BOUND_COLOR, alpha=0.22, linewidth=0, label="below the lower bound")
    axes.plot(*columns, color=BOUND_COLOR, linewidth=1)


def _draw_measured(axes: Any, curve: Curve, sizes: Scale, times: Scale) -> None:
    measured = [
        (point.budget_nbytes * sizes.factor, point.measured_seconds * times.factor)
        for point in curve.points
        if point.measured_seconds is not None
    ]
    if measured:
        style = {"color": "none", "edgecolor": "black", "linewidth": 1.3, "s": 64, "zorder": 5}
        axes.scatter(*zip(*measured, strict=True), label="measured", **style)


def _label(axes: Any, curve: Curve, sizes: Scale, times: Scale) -> None:
    axes.set_xscale("log")
    ticks = [nbytes * sizes.factor for nbytes in size_ticks(curve.budgets)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    margin = max(1.01, (max(curve.budgets) / min(curve.budgets)) ** 0.02)
    axes.set_xlim(min(curve.budgets) * sizes.factor / margin, max(curve.budgets) * sizes.factor * margin)
    slowest = max(max(p.predicted_seconds or 0.0, p.measured_seconds or 0.0) for p in curve.points)
    axes.set_ylim(0, slowest * times.factor * _ROOM or 1)
    axes.set_xlabel(f"budget ({sizes.unit})")
    axes.set_ylabel(f"{curve.timed} ({times.unit})")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"{curve.model.replace('$', chr(92) + '$')}: delay by budget\n", loc="left", fontweight="bold")
    axes.text(0, 1.02, facts_of(curve), transform=axes.transAxes, color="#555555")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
