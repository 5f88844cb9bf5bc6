"""Markdown table of training within budgets: a pure function of the JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.markdown import Cell, Results, provenance, table

SAVED_TARGET, OVERHEAD_TARGET, SAVED_BY_ALL = 0.342, 0.01, 0.30
FASTER_TARGET = 1.3
FOOTPRINT_TARGET = 1.005
_RIVALS = {"saving": "all saved to the SSD", "checkpoint": "every block computed anew"}
_GIB = 2**30


def training_table(results: Results) -> str:
    """Model and budget: memory and time against plain training."""
    cells = [cell for cell in results["cells"] if cell["against"] == "plain"]
    head = ["", "batch", "budget", "plain", "within it", "memory", "time", "written", "same bits"]
    rows = [_row(cell) for cell in cells]
    return "\n\n".join([table(head, rows, left=1), _verdict(cells), provenance(results)])


def pool_claim(training: Results, plans: Results) -> str:
    """Against CnMem on recorded blocks; and for real, where the budget is all that plain training takes."""
    less = [1 - cell["footprints"]["planned"] / cell["footprints"]["cnmem"] for cell in plans["cells"]]
    text = (
        f"up to **{100 * max(less):.1f} %** less than CnMem's rule on the same recorded blocks, "
        f"{100 * statistics.median(less):.1f} % in the median of {len(less)} models"
    )
    plain = [cell for cell in training["cells"] if cell["against"] == "plain"]
    whole = [cell for cell in plain if cell["status"] == "ok" and cell["budget_percent"] >= 100]
    if not whole:
        return text
    saved, overhead = ([cell[name] for cell in whole] for name in ("saved", "overhead"))
    return (
        f"{text}; for real, against glibc's allocator with next to nothing swapped, "
        f"{100 * statistics.median(saved):.1f} % less memory in the median, {100 * max(saved):.1f} % at best, at "
        f"{100 * statistics.median(overhead):+.1f} % time"
    )


def swapping_claim(results: Results) -> str:
    """The most that each model saves without taking longer."""
    best: dict[str, float] = {}
    for cell in results["cells"]:
        if cell["against"] != "plain" or cell["status"] != "ok":
            continue
        if cell["overhead"] <= OVERHEAD_TARGET and cell["is_identical"]:
            best[cell["title"]] = max(best.get(cell["title"], 0.0), cell["saved"])
    count = len({cell["title"] for cell in results["cells"]})
    if not best:
        return f"within {100 * OVERHEAD_TARGET:g} % of the time: 0 of {count} models"
    return (
        f"with the pool, within {100 * OVERHEAD_TARGET:g} % of plain training's time: "
        f"**{100 * statistics.median(best.values()):.1f} %** less memory in the median of {len(best)} of {count} "
        f"models, {100 * max(best.values()):.1f} % at best"
    )


def rivals_in_training_table(results: Results) -> str:
    """What people do today, and Penstock in the memory that it takes."""
    cells = [cell for cell in results["cells"] if cell["against"] != "plain"]
    head = ["", "rival", "it takes", "Penstock within that", "faster", "same bits"]
    rows = []
    for cell in cells:
        start = [cell["title"], _RIVALS[cell["against"]]]
        if cell["status"] != "ok":
            rows.append([*start, f"{cell['budget_nbytes'] / _GIB:.2f} GiB", *_refusal(cell), "", ""])
            continue
        rows.append(
            [
                *start,
                f"{cell['reference_peak_nbytes'] / _GIB:.2f} GiB, {statistics.median(cell['reference_seconds']):.2f} s",
                f"{_peak(cell)}, {statistics.median(cell['autoswap_seconds']):.2f} s",
                f"**{_faster(cell):.2f}x**",
                "yes" if cell["is_identical"] else "no",
            ]
        )
    medians = [
        f"{what}: **{statistics.median(map(_faster, found)):.2f}x** in {len(found)} models"
        for rival, what in _RIVALS.items()
        if (found := [cell for cell in cells if cell["against"] == rival and cell["status"] == "ok"])
    ]
    verdict = f"Medians: {'; '.join(medians)} (target ≥ {FASTER_TARGET})."
    return "\n\n".join([table(head, rows, left=2), verdict, provenance(results)])


def _faster(cell: Cell) -> float:
    return 1 / (1 + float(cell["overhead"]))


def pools_table(results: Results) -> str:
    """What pools reserve for the same recorded blocks, by the most that live at one moment."""
    cells = results["cells"]
    head = ["", "live at most", "planned", "SmartPool's rule", "CnMem", "CnMem, one segment", "caching", "planning"]
    names = ("planned", "smartpool", "cnmem", "cnmem_one_segment", "caching")
    rows = []
    for cell in cells:
        ratios = [cell["footprints"][name] / cell["load_nbytes"] for name in names]
        numbers = [f"**{ratios[0]:.3f}**", *(f"{ratio:.3f}" for ratio in ratios[1:])]
        live = f"{cell['load_nbytes'] / _GIB:.2f} GiB"
        rows.append([cell["title"], live, *numbers, f"{cell['planning_seconds']:.1f} s"])
    within = sum(cell["footprints"]["planned"] <= FOOTPRINT_TARGET * cell["load_nbytes"] for cell in cells)
    less = [1 - cell["footprints"]["planned"] / cell["footprints"]["cnmem"] for cell in cells]
    verdict = (
        f"Within {FOOTPRINT_TARGET} of the load: **{within} of {len(cells)}** (target all). Less than CnMem: "
        f"{100 * min(less):.1f} to {100 * max(less):.1f} %, median **{100 * statistics.median(less):.1f} %** "
        "(the paper: up to 13.3 %)."
    )
    return "\n\n".join([table(head, rows, left=1), verdict, provenance(results)])


def scores_table(results: Results) -> str:
    """Predicted overhead by what an iteration's storages are to take less, for each way to choose."""
    savings = [point["saving"] for point in results["cells"][0]["curve"]]
    rows = []
    for cell in results["cells"]:
        for way in (*_WAYS, "bound"):
            numbers = [_predicted(point, way) for point in cell["curve"]]
            rows.append([cell["title"] if way == "best" else "", _WAYS.get(way, "no plan can beat"), *numbers])
    rows.append(["paper, VGG", "its best", *(_PAPER.get(saving, "") for saving in savings)])
    head = ["", "chosen by", *(f"-{100 * saving:g} %" for saving in savings)]
    return "\n\n".join([table(head, rows, left=2), provenance(results)])


_WAYS = {
    "best": "**ours**",
    "doa": "DOA",
    "aoa": "AOA",
    "wdoa": "WDOA",
    "swdoa": "SWDOA",
    "weighted": "weighted",
}
_PAPER = {0.305: "0", 0.382: "2.7", 0.46: "7.4", 0.568: "13.3"}
"""Zhang et al., arXiv 1903.06631: percent of an iteration on a GPU, for VGG."""


def _predicted(point: Cell, way: str) -> str:
    if point["overheads"] is None:
        return ""
    value = 100 * (point["bound"] if way == "bound" else point["overheads"][way])
    text = f"{max(value, 0.0):.1f}" if abs(value) < 100 else f"{value:.0f}"
    return f"**{text}**" if way == "best" else text


def _row(cell: Cell) -> list[str]:
    what = ", weights too" if cell["parameters"] else ""
    budget = f"{cell['budget_percent']:g} %, {cell['budget_nbytes'] / _GIB:.2f} GiB{what}"
    head = [cell["title"], str(cell["rows"]), budget]
    if cell["status"] != "ok":
        return [*head, *_refusal(cell), "", "", "", "", ""]
    planned = cell["planned"]
    return [
        *head,
        f"{cell['reference_peak_nbytes'] / _GIB:.2f} GiB, {statistics.median(cell['reference_seconds']):.2f} s",
        f"{_peak(cell)}, {statistics.median(cell['autoswap_seconds']):.2f} s",
        f"**{-100 * cell['saved']:+.1f} %**",
        f"**{100 * cell['overhead']:+.1f} %**",
        f"{planned['swapped_nbytes'] / _GIB:.2f} GiB",
        f"yes, {cell['compared_steps']} steps" if cell["is_identical"] else "no",
    ]


def _peak(cell: Cell) -> str:
    """Bold where it is beyond the budget."""
    text = f"{cell['autoswap_peak_nbytes'] / _GIB:.2f} GiB"
    return f"**{text}**" if cell["autoswap_peak_nbytes"] > cell["budget_nbytes"] else text


def _refusal(cell: Cell) -> list[str]:
    needed = cell.get("needed_nbytes")
    return [f"too small: needs {needed / _GIB:.2f} GiB" if needed else cell["status"]]


def _verdict(cells: Sequence[Cell]) -> str:
    """How many models reach the targets at some budget."""
    models = dict.fromkeys(cell["title"] for cell in cells)
    done = [cell for cell in cells if cell["status"] == "ok" and cell["is_identical"]]

    def reach(saved: float, overhead: float) -> int:
        return len({c["title"] for c in done if c["saved"] >= saved and c["overhead"] <= overhead} & models.keys())

    return (
        f"At least {100 * SAVED_TARGET:g} % less memory at ≤ {100 * OVERHEAD_TARGET:g} % more time: "
        f"**{reach(SAVED_TARGET, OVERHEAD_TARGET)} of {len(models)}** models (target 3); at least "
        f"{100 * SAVED_BY_ALL:g} % less: {reach(SAVED_BY_ALL, OVERHEAD_TARGET)} (target all)."
    )
