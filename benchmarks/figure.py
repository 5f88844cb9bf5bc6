"""The README's figure: warm latency over its lower bound, by budget, a line for each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.tables import WARM_TARGET

NAME = "warm-ratio"


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the figure as PNG and SVG into `folder`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = NAME  # the same results give the same file
    from matplotlib import pyplot

    lines: dict[str, list[tuple[int, float]]] = {}
    for cell in results["cells"]:
        if "ratio" in cell:
            lines.setdefault(cell["title"], []).append((cell["budget_percent"], cell["ratio"]))
    picture, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for title, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=title)
    axes.axhline(WARM_TARGET, color="grey", linestyle="--", linewidth=1, label=f"target {WARM_TARGET}")
    axes.set_xlabel("budget, % of the weights")
    axes.set_ylabel("latency / max(resident, bytes / bandwidth)")
    axes.set_ylim(bottom=min(0.9, *(ratio - 0.03 for points in lines.values() for _, ratio in points)))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{NAME}.png", folder / f"{NAME}.svg"]
    picture.savefig(files[0], dpi=160, metadata={"Software": None})
    picture.savefig(files[1], metadata={"Date": None})
    pyplot.close(picture)
    return files
