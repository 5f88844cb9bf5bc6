"""The README's figures, each from one results file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.markdown import Results
from benchmarks.tables import WARM_TARGET

WARM_RATIO, PREDICTION, TRAINING = "warm-ratio", "prediction", "training"
PAPERS_CURVE = ((30.5, 0.0), (32.1, 0.1), (38.2, 2.7), (46.0, 7.4), (56.8, 13.3))
"""Zhang et al., arXiv 1903.06631: percent less memory, percent longer."""
TOLERANCE_PERCENT = 10


def draw_warm_ratio(results: Results, folder: Path) -> list[Path]:
    """Writes warm latency over its lower bound, by budget, a line for each model, as PNG and SVG into `folder`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    picture, axes = _begin(WARM_RATIO, (7, 3.6))
    lines: dict[str, list[tuple[int, float]]] = {}
    for cell in results["cells"]:
        if "ratio" in cell:
            lines.setdefault(cell["title"], []).append((cell["budget_percent"], cell["ratio"]))
    for title, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=title)
    axes.axhline(WARM_TARGET, color="grey", linestyle="--", linewidth=1, label=f"target {WARM_TARGET}")
    axes.set_xlabel("budget, % of the weights")
    axes.set_ylabel("latency / max(resident, bytes / bandwidth)")
    axes.set_ylim(bottom=min(0.9, *(ratio - 0.03 for points in lines.values() for _, ratio in points)))
    return _end(WARM_RATIO, picture, axes, folder)


def draw_prediction(results: Results, folder: Path) -> list[Path]:
    """Writes how far predictions are off, a point for each configuration, as PNG and SVG into `folder`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    picture, axes = _begin(PREDICTION, (7, 3.6))
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in results["cells"]:
        if cell["status"] == "ok":
            points.setdefault(cell["strategy"], []).append((1e3 * cell["measured_seconds"], 100 * cell["error"]))
    for strategy, some in points.items():
        axes.scatter(*zip(*some, strict=True), s=14, label=strategy)
    axes.axhline(0, color="grey", linewidth=1)
    for percent in (-TOLERANCE_PERCENT, TOLERANCE_PERCENT):
        axes.axhline(percent, color="grey", linestyle="--", linewidth=1)
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("predicted, % off")
    return _end(PREDICTION, picture, axes, folder)


def draw_training(results: Results, folder: Path) -> list[Path]:
    """Writes the predicted overhead of an iteration by what it is to take less, ours for each model and the paper's.

    Raises:
        ImportError: matplotlib is not installed.
    """
    picture, axes = _begin(TRAINING, (7, 3.6))
    for cell in results["cells"]:
        points = [(100 * p["saving"], 100 * p["overheads"]["best"]) for p in cell["curve"] if p["overheads"]]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=cell["title"])
    axes.plot(*zip(*PAPERS_CURVE, strict=True), color="black", linestyle="--", marker="x", label="paper, VGG on a GPU")
    axes.set_xlabel("storages of an iteration, % less at the peak")
    axes.set_ylabel("predicted, % longer")
    axes.set_ylim(bottom=-1)
    return _end(TRAINING, picture, axes, folder)


def _begin(name: str, inches: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = name  # the same results give the same file
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(figsize=inches, layout="constrained")
    return picture, axes


def _end(name: str, picture: Any, axes: Any, folder: Path) -> list[Path]:
    from matplotlib import pyplot

    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.png", folder / f"{name}.svg"]
    picture.savefig(files[0], dpi=160, metadata={"Software": None})
    picture.savefig(files[1], metadata={"Date": None})
    pyplot.close(picture)
    return files


FIGURES: dict[str, Callable[[Results, Path], list[Path]]] = {
    "run": draw_warm_ratio,
    "prediction": draw_prediction,
    "training_plans": draw_training,
}
"""What is drawn of which results file."""
