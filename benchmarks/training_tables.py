"""Markdown table of training within budgets: a pure function of the JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.markdown import Cell, Results, provenance, table

SAVED_TARGET, OVERHEAD_TARGET, SAVED_BY_ALL = 0.342, 0.01, 0.30
_GIB = 2**30


def training_table(results: Results) -> str:
    """Model and budget: memory and time against plain training."""
    cells = results["cells"]
    head = ["", "batch", "budget", "plain", "within it", "memory", "time", "written", "same bits"]
    rows = [_row(cell) for cell in cells]
    return "\n\n".join([table(head, rows, left=1), _verdict(cells), provenance(results)])


def pool_claim(results: Results) -> str:
    """What addresses do, where the budget is all that plain training takes, so that next to nothing has to leave."""
    whole = [cell for cell in results["cells"] if cell["status"] == "ok" and cell["budget_percent"] >= 100]
    if not whole:
        return "not measured alone"
    saved, overhead = ([cell[name] for cell in whole] for name in ("saved", "overhead"))
    return (
        "against glibc's allocator, with next to nothing swapped: "
        f"**{100 * statistics.median(saved):.1f} %** less memory in "
        f"the median of {len(whole)} models, {100 * max(saved):.1f} % at best, at "
        f"{100 * statistics.median(overhead):+.1f} % time"
    )


def swapping_claim(results: Results) -> str:
    """The most that each model saves without taking longer."""
    best: dict[str, float] = {}
    for cell in results["cells"]:
        if cell["status"] == "ok" and cell["overhead"] <= OVERHEAD_TARGET and cell["is_identical"]:
            best[cell["title"]] = max(best.get(cell["title"], 0.0), cell["saved"])
    count = len({cell["title"] for cell in results["cells"]})
    if not best:
        return f"within {100 * OVERHEAD_TARGET:g} % of the time: 0 of {count} models"
    return (
        f"with the pool, within {100 * OVERHEAD_TARGET:g} % of plain training's time: "
        f"**{100 * statistics.median(best.values()):.1f} %** less memory in the median of {len(best)} of {count} "
        f"models, {100 * max(best.values()):.1f} % at best"
    )


def _row(cell: Cell) -> list[str]:
    head = [cell["title"], str(cell["rows"]), f"{cell['budget_percent']:g} %, {cell['budget_nbytes'] / _GIB:.2f} GiB"]
    if cell["status"] != "ok":
        return [*head, *_refusal(cell), "", "", "", "", ""]
    planned = cell["planned"]
    return [
        *head,
        f"{cell['plain_peak_nbytes'] / _GIB:.2f} GiB, {statistics.median(cell['plain_seconds']):.2f} s",
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
