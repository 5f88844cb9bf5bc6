"""Markdown tables of the comparison of strategies: pure functions of the JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.markdown import Cell, Results, median_of, ms, percent, provenance, table
from benchmarks.training_tables import pool_claim, swapping_claim

GAP_TARGET, WORST_GAP_TARGET, MEASURED_GAP_TARGET = 0.02, 0.05, 0.05
SWAPNET_TARGET = 0.02
SWAPNET_DEMANDS = {2.32: 43.1, 5.81: 17.2}
"""How many times its budget a model needs, and which per cent of its weights that leaves."""
SLOWER = 1.01
"""A strategy that is slower by less than this is not slower."""


def strategies_table(results: Results) -> str:
    """Model by budget: the default strategy, predicted and measured, beside the best other."""
    reference = results["settings"]["reference"]
    head = [
        "model",
        "budget",
        "resident",
        f"`{reference}` predicted",
        f"`{reference}` measured",
        "gap predicted",
        "gap measured",
        "best other",
        "its latency",
        "peak / budget",
    ]
    cells = results["cells"]
    lines = [table(head, [_row(cell, reference) for cell in cells], left=1)]
    ours = [cell["strategies"][reference] for cell in cells if _ran(cell, reference)]
    if ours:
        lines.append(
            f"Gap of `{reference}` to what no plan can beat, over {len(ours)} cells: predicted **"
            f"{percent(median_of(ours, 'gap'))}** median (target ≤ {percent(GAP_TARGET)}), "
            f"{percent(max(one['gap'] for one in ours))} worst (≤ {percent(WORST_GAP_TARGET)}); measured "
            f"**{percent(median_of(ours, 'measured_gap'))}** median (≤ {percent(MEASURED_GAP_TARGET)}). "
            + _pairwise(cells, reference)
        )
    lines += [f"`{name}`: {reason}." for name, reason in _missing(cells).items()]
    if any(one["killed_at_cap"] for one in ours):
        lines.append("† A process of it was killed by the kernel at this cap; timed again without one.")
    return "\n\n".join([*lines, provenance(results)])


def _row(cell: Cell, reference: str) -> list[str]:
    row = [cell["title"], f"{cell['budget_percent']:.0f} %", ms(cell["resident_seconds"])]
    ours = cell["strategies"].get(reference)
    if ours is None or ours["status"] != "ok":
        return [*row, "", _failure(ours), "", "", *_best_other(cell, reference)]
    return [
        *row,
        ms(ours["predicted_seconds"]),
        ms(ours["median_seconds"]),
        percent(ours["gap"]),
        percent(ours["measured_gap"]),
        *_best_other(cell, reference),
        _peak(ours, cell["budget_nbytes"]),
    ]


def _failure(record: Cell | None) -> str:
    if record is None:
        return ""
    needed = record.get("needed_nbytes")
    return f"needs {needed / 2**20:.0f} MiB" if needed else str(record["status"])


def _best_other(cell: Cell, reference: str) -> list[str]:
    """Name and latency of the fastest other strategy, and how many times as long as ours beside it that is."""
    others = [
        (record["median_seconds"], name)
        for name, record in cell["strategies"].items()
        if name != reference and record["status"] == "ok"
    ]
    if not others:
        return ["none", ""]
    seconds, name = min(others)
    text = ms(seconds)
    beside = cell["strategies"][name].get("reference_seconds")
    if beside:
        text += f" ({seconds / statistics.median(beside):.2f}×)"
    return [f"`{name}`", text]


def _peak(record: Cell, budget_nbytes: int) -> str:
    if record["peak_nbytes"] is None:
        return "not measured"
    share = f"{100 * record['peak_nbytes'] / budget_nbytes:.0f} %" + (" †" if record["killed_at_cap"] else "")
    return share if record["peak_nbytes"] <= budget_nbytes and not record["killed_at_cap"] else f"**{share}**"


def _pairwise(cells: Sequence[Cell], reference: str) -> str:
    """How often the reference was slower than another strategy in the same run, beyond noise."""
    pairs = [(cell, name, record) for cell in cells for name, record in _others(cell, reference)]
    slower = [
        f"`{name}` on {cell['title']} at {cell['budget_percent']:.0f} %"
        for cell, name, record in pairs
        if is_slower(record["reference_seconds"], record["seconds"])
    ]
    text = f"Slower than another strategy beyond noise: in {len(slower)} of {len(pairs)} pairs"
    return text + (f" ({', '.join(slower)})." if slower else ".")


def _others(cell: Cell, reference: str) -> Iterator[tuple[str, Cell]]:
    for name, record in cell["strategies"].items():
        if name != reference and record["status"] == "ok" and record.get("reference_seconds"):
            yield name, record


def is_slower(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether ours took longer, beyond noise: three quarters of each lie apart, and the medians by more than 1 %."""
    apart = _quartiles(ours)[0] > _quartiles(theirs)[2]
    return apart and statistics.median(ours) > SLOWER * statistics.median(theirs)


def _quartiles(samples: Sequence[float]) -> list[float]:
    return statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3


def _missing(cells: Sequence[Cell]) -> dict[str, str]:
    """Strategies that could not be tried, and why."""
    return {
        name: record["reason"]
        for cell in cells
        for name, record in cell["strategies"].items()
        if record["status"] == "unavailable"
    }


def _ran(cell: Cell, reference: str) -> bool:
    return reference in cell["strategies"] and cell["strategies"][reference]["status"] == "ok"


def claims_table(layering: Results, planning: Results, cold: Results, training: Results, plans: Results) -> str:
    """What each of the five systems claims, on its authors' hardware, beside what was measured here."""
    rows = [
        [
            "Demand Layering",
            "96.5 % less memory at 14.8 % more delay; 88.4 % less at under 1 ms more (Jetson AGX Xavier)",
            _layering_claim(layering),
        ],
        [
            "SwapNet",
            "almost the latency of sufficient memory where models need 2.32 to 5.81 times the budget",
            _swapnet_claim(layering),
        ],
        [
            "FlashMem",
            "plans in 45 to 136 s (64 cores); 2.0 to 8.4 times less memory and 1.7 to 75 times faster cold than "
            "preloading frameworks (OnePlus 12)",
            _flashmem_claim(planning, cold),
        ],
        ["SmartPool", "up to 13.3 % less memory than CnMem in training", pool_claim(training, plans)],
        ["AutoSwap", "up to 34.2 % less memory without overhead in training", swapping_claim(training)],
    ]
    return table(["system", "its headline", "here"], rows, left=3)


def _layering_claim(results: Results) -> str:
    """Over the models, the median of the least memory within each limit, by either count."""
    found = []
    for index, limit in enumerate(results["settings"]["limits"]):
        models: dict[str, list[Cell]] = {}
        for cell in results["cells"]:
            models.setdefault(cell["model"], []).append({**cell, **(cell["least"][index] or {})})
        best = [
            min(
                (cell for cell in cells if "weights_part_nbytes" in cell),
                key=lambda cell: float(cell["weights_part_nbytes"]),
                default=None,
            )
            for cells in models.values()
        ]
        reached = [cell for cell in best if cell is not None]
        text = f"at ≤ {100 * limit:g} % more delay: {len(reached)} of {len(models)} models"
        if reached:
            less = [1 - cell["weights_part_nbytes"] / cell["weights_nbytes"] for cell in reached]
            whole = [1 - cell["budget_nbytes"] / cell["weights_nbytes"] for cell in reached]
            text += (
                f", for weights **{percent(statistics.median(less))}** less in the median, {percent(max(less))} at "
                f"best ({percent(statistics.median(whole))} and {percent(max(whole))} with activations and all else)"
            )
        found.append(text)
    return "; ".join(found)


def _swapnet_claim(results: Results) -> str:
    """The default strategy's overhead at SwapNet's demands, where storage suffices."""
    found = []
    for demand, share in SWAPNET_DEMANDS.items():
        overheads = [
            one["overhead"]
            for cell in results["cells"]
            for one in cell["tries"]
            if one["percent"] == share and one["status"] == "ok"
        ]
        text = f"weights {demand:g} times their memory: "
        if overheads:
            text += f"**{percent(statistics.median(overheads))}** over the resident latency in the median of "
        found.append(text + f"{len(overheads)} settings where storage suffices")
    return "; ".join(found) + f" (target ≤ {percent(SWAPNET_TARGET)})"


def _flashmem_claim(planning: Results, cold: Results) -> str:
    """Planning times on the largest model, and cold starts beside the library's own."""
    reference = planning["settings"]["reference"]
    largest = max(planning["cells"], key=lambda cell: float(cell["weights_nbytes"]))
    parts = []
    for name in dict.fromkeys((reference, "flashmem")):
        tried = [cell["strategies"].get(name) for cell in planning["cells"] if cell["model"] == largest["model"]]
        made = [record for record in tried if record is not None and record["status"] == "ok"]
        if made:
            longest = max(record["planning_seconds"] for record in made)
            gap = max(record["gap"] for record in made)
            parts.append(f"`{name}` plans a {largest['title']}, in {longest:.1f} s at most (gap ≤ {percent(gap)})")
    measured = [cell for cell in cold["cells"] if "speedup" in cell]
    if measured:
        memory = statistics.median(cell["weights_nbytes"] / cell["budget_nbytes"] for cell in measured)
        parts.append(
            f"cold, {memory:.1f} times less memory than the weights and {median_of(measured, 'speedup'):.2f} times as "
            "fast as `from_pretrained`, medians"
        )
    return "; ".join(parts)
