"""Markdown tables from results: pure functions of the JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks.markdown import Cell, Results, median_of, mib, ms, provenance, table
from benchmarks.placement_tables import placement_table
from benchmarks.planning_tables import layering_table, planning_table, prediction_table
from benchmarks.strategy_tables import claims_table, strategies_table
from benchmarks.training_tables import pools_table, rivals_in_training_table, scores_table, training_table

WARM_TARGET, OVERHEAD_TARGET, COLD_TARGET = 1.05, 1.01, 1.15
RIVAL_TITLES = {
    "accelerate": "accelerate `disk_offload`",
    "paging": "OS paging",
    "diffusers": "diffusers group offloading",
}
RIVAL_TARGETS = {"accelerate": 2.5, "paging": 1.6, "diffusers": 2.5}


def main_table(results: Results) -> str:
    """Model by budget: latency, ratio to the lower bound, stalls, peak; medians over all cells below."""
    head = ["model", "budget", "resident", "Penstock", "ratio", "stalled", "read per pass", "storage", "peak / budget"]
    rows = [_main_row(cell) for cell in results["cells"]]
    measured = [cell for cell in results["cells"] if "ratio" in cell]
    lines = [table(head, rows, left=1)]
    if measured:
        within = sum(1 for cell in measured if _is_within(cell))
        others = [cell for cell in measured if not cell["bit_identical"]]
        lines.append(
            f"Median ratio over {len(measured)} cells: **{median_of(measured, 'ratio'):.3f}** "
            f"(target ≤ {WARM_TARGET}). "
            f"Peak within the budget: {within} of {len(measured)}. "
            f"Bit-identical: {len(measured) - len(others)} of {len(measured)}."
        )
        if others:
            most = max(cell["arms"]["penstock"]["relative_error"] for cell in others)
            lines[-1] += f" The others differ by at most {most:.1g} of the largest output."
    if any(cell["killed_at_cap"] for cell in measured):
        lines.append("† A process of it was killed by the kernel at this cap; timed again without one.")
    return "\n\n".join([*lines, provenance(results)])


def _main_row(cell: Cell) -> list[str]:
    row = [cell["title"], f"{cell['budget_percent']} % ({mib(cell['budget_nbytes'])})"]
    if "ratio" not in cell:
        needed = cell.get("needed_nbytes")
        text = f"needs {mib(needed)}" if needed else cell["status"]
        return [*row, "", text, "", "", "", "", ""]
    return [
        *row,
        ms(cell["resident_seconds"]),
        ms(cell["warm_seconds"]),
        f"{cell['ratio']:.2f}",
        ms(cell["stall_seconds"]),
        mib(cell["bytes_streamed"]),
        f"{cell['bytes_per_second'] / 1e9:.1f} GB/s",
        _peak(cell),
    ]


def _peak(cell: Cell) -> str:
    if cell["peak_nbytes"] is None:
        return "not measured"
    share = f"{100 * cell['peak_nbytes'] / cell['budget_nbytes']:.0f} %" + (" †" if cell["killed_at_cap"] else "")
    return share if _is_within(cell) else f"**{share}**"


def _is_within(cell: Cell) -> bool:
    """What took the place of a process that was killed ran without a cap: it shows nothing."""
    is_known = cell["peak_nbytes"] is not None and not cell["killed_at_cap"]
    return is_known and cell["peak_nbytes"] <= cell["budget_nbytes"]


def rivals_table(results: Results) -> str:
    """How many times faster than each rival, at the budgets at which rivals ran."""
    cells = [cell for cell in results["cells"] if any(name in cell["arms"] for name in RIVAL_TITLES)]
    head = ["model", "budget", "Penstock", *RIVAL_TITLES.values()]
    rows = []
    for cell in cells:
        warm = ms(cell["warm_seconds"]) if "ratio" in cell else cell["status"]
        rivals = [_rival(cell, name) for name in RIVAL_TITLES]
        rows.append([cell["title"], f"{cell['budget_percent']} %", warm, *rivals])
    medians = [_rival_median(cells, name) for name in RIVAL_TITLES]
    lines = [table(head, rows, left=1)]
    lines.append("Median speed-up: " + "; ".join(text for text in medians if text) + ".")
    lines.append(
        "† Killed by the kernel at this cap; timed again without one. Rivals read from a page cache that was emptied "
        "before each pass."
    )
    return "\n\n".join([*lines, provenance(results)])


def _rival(cell: Cell, name: str) -> str:
    record = cell["arms"].get(name)
    if record is None:
        return ""
    if record["status"] != "ok":
        return {"killed": "out of memory", "timeout": "timed out"}.get(record["status"], "does not run")
    speedup = cell.get("speedups", {}).get(name)
    text = ms(record["median_seconds"]) + (f" ({speedup:.2f}×)" if speedup is not None else "")
    return text + (" †" if record["killed_at_cap"] else "")


def _rival_median(cells: Sequence[Cell], name: str) -> str:
    """Over the cells in which it fits its cap as Penstock does, and over all, where it may run uncapped."""
    fitting, everywhere = [], []
    for cell in cells:
        speedup = cell.get("speedups", {}).get(name)
        if speedup is not None:
            everywhere.append(speedup)
            if not cell["arms"][name]["killed_at_cap"] and not cell["killed_at_cap"]:
                fitting.append(speedup)
    if not everywhere:
        return ""
    text = f"{RIVAL_TITLES[name]} **{statistics.median(everywhere):.2f}×** over {len(everywhere)} cells"
    if fitting and len(fitting) < len(everywhere):
        text += f", {statistics.median(fitting):.2f}× over the {len(fitting)} that it survives"
    return f"{text} (target ≥ {RIVAL_TARGETS[name]}×)"


def cold_table(results: Results) -> str:
    """Time to the first output in a new process."""
    head = ["model", "budget", "Penstock", "ratio", "`from_pretrained`", "speed-up", "Penstock, never traced"]
    cells = results["cells"]
    measured = [cell for cell in cells if "ratio" in cell]
    rows = [
        [
            cell["title"],
            mib(cell["budget_nbytes"]),
            ms(cell["medians"]["penstock"]),
            f"{cell['ratio']:.2f}",
            ms(cell["medians"]["from_pretrained"]),
            f"{cell['speedup']:.2f}×",
            ms(cell["medians"]["penstock_first"]),
        ]
        for cell in measured
    ]
    rows += [[cell["title"], mib(cell["budget_nbytes"]), cell["status"]] for cell in cells if "ratio" not in cell]
    lines = [table(head, rows, left=1)]
    if measured:
        lines.append(
            f"Median ratio to max(resident time, bytes / bandwidth): **{median_of(measured, 'ratio'):.2f}** "
            f"(target ≤ {COLD_TARGET}); median speed-up over `from_pretrained`: {median_of(measured, 'speedup'):.2f}×."
        )
    return "\n\n".join([*lines, provenance(results)])


def overhead_table(results: Results) -> str:
    """Ratio to the resident model where all or nearly all weights are resident."""
    measured = [cell for cell in results["cells"] if "ratio" in cell]
    cells = {(cell["title"], cell["case"]): cell for cell in measured}
    rows = []
    for title in dict.fromkeys(cell["title"] for cell in results["cells"]):
        full, ample = (cells.get((title, case)) for case in ("100 %", "ample"))
        rows.append(
            [
                title,
                f"{full['ratio']:.3f}" if full else "",
                mib(full["bytes_streamed"]) if full else "",
                f"{ample['ratio']:.3f}" if ample else "",
            ]
        )
    lines = [table(["model", "100 % of the weights", "read per pass", "everything resident"], rows, left=1)]
    medians = []
    for case, name in (("100 %", "100 % of the weights"), ("ample", "everything resident")):
        chosen = [cell for cell in measured if cell["case"] == case]
        if chosen:
            medians.append(f"{name} **{median_of(chosen, 'ratio'):.3f}**")
    if medians:
        lines.append(f"Median: {', '.join(medians)} (target ≤ {OVERHEAD_TARGET}).")
    return "\n\n".join([*lines, provenance(results)])


TABLES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "main": (("run",), main_table),
    "rivals": (("run",), rivals_table),
    "cold": (("cold",), cold_table),
    "overhead": (("overhead",), overhead_table),
    "claims": (("demand_layering", "planning", "cold", "training", "training_plans"), claims_table),
    "strategies": (("strategies",), strategies_table),
    "layering": (("demand_layering",), layering_table),
    "prediction": (("prediction",), prediction_table),
    "planning": (("planning",), planning_table),
    "placement": (("placement",), placement_table),
    "training": (("training",), training_table),
    "traininginstead": (("training",), rivals_in_training_table),
    "pools": (("training_plans",), pools_table),
    "scores": (("training_plans",), scores_table),
}
"""The tables by name, in the README's order: which results files each is made of, and how."""
