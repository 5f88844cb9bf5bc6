"""Markdown tables of predictions, of planning and of the least memory: pure functions of the JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.markdown import Cell, Results, mib, ms, percent, provenance, table
from benchmarks.summaries import absolute_errors, percentile

PREDICTION_FIGURE = "docs/images/prediction.png"
ERROR_TARGET, TAIL_TARGET = 0.03, 0.10
PLANNING_TARGETS = {"resnet152": 0.2, "llama-70b": 1.0, "llama-70b-token": 1.0}


def layering_table(results: Results) -> str:
    """Model by batch: the least memory within each limit."""
    limits = results["settings"]["limits"]
    head = ["model", "batch", "resident", "reading all"]
    for limit in limits:
        head += [f"≤ {100 * limit:g} %: for weights", "all of it"]
    rows = []
    for cell in results["cells"]:
        reading = cell["weights_nbytes"] / cell["bytes_per_second"]
        row = [cell["title"], str(cell["batch"]), ms(cell["resident_seconds"]), ms(reading)]
        for least in cell["least"]:
            row += _less(least, cell["weights_nbytes"])
        rows.append(row)
    return "\n\n".join([table(head, rows, left=1), _tries_table(results), provenance(results)])


def _tries_table(results: Results) -> str:
    """How much longer passes take, for each share of the weights that was tried."""
    shares = sorted({one["percent"] for cell in results["cells"] for one in cell["tries"]}, reverse=True)
    rows = []
    for cell in results["cells"]:
        found = {one["percent"]: one for one in cell["tries"]}
        rows.append([cell["title"], str(cell["batch"]), *(_overhead(found.get(share)) for share in shares)])
    return table(["longer by", "batch", *(f"{share:g} % of the weights" for share in shares)], rows, left=1)


def _overhead(one: Cell | None) -> str:
    if one is None:
        return ""
    return percent(one["overhead"]) if one["status"] == "ok" else f"needs {mib(one['needed_nbytes'])}"


def _less(least: Cell | None, weights_nbytes: int) -> list[str]:
    if least is None:
        return ["not reached", ""]
    found = []
    for name in ("weights_part_nbytes", "budget_nbytes"):
        saved = 1 - least[name] / weights_nbytes
        found.append(f"{percent(abs(saved))} {'less' if saved >= 0 else 'more'}")
    return found


def prediction_table(results: Results) -> str:
    """How far predictions from one profile are off, by model, and over all models by strategy."""
    cells = results["cells"]
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell["title"], []).append(cell)
    for cell in cells:
        groups.setdefault(f"`{cell['strategy']}`", []).append(cell)
    rows = [[title, *_errors(some)] for title, some in groups.items()]
    head = ["", "configurations", "median error", "95th percentile", "worst", "machine moved", "median alongside"]
    lines = [table(head, rows, left=1)]
    errors, alongside = absolute_errors(cells, "error"), absolute_errors(cells, "alongside_error")
    if errors:
        lines.append(
            f"Absolute error over {len(errors)} configurations: **{percent(statistics.median(errors))}** in the median "
            f"(target ≤ {percent(ERROR_TARGET)}), **{percent(percentile(errors, 0.95))}** at the 95th percentile "
            f"(≤ {percent(TAIL_TARGET)}). With computing as fast as the resident model's alongside: "
            f"{percent(statistics.median(alongside))} and {percent(percentile(alongside, 0.95))}."
        )
        lines.append(f"![By how much predictions are off, a point for each configuration]({PREDICTION_FIGURE})")
    return "\n\n".join([*lines, provenance(results)])


def _errors(cells: Sequence[Cell]) -> list[str]:
    errors, alongside = absolute_errors(cells, "error"), absolute_errors(cells, "alongside_error")
    if not errors:
        return ["0"]
    moved = statistics.median(abs(cell["machine_moved"]) for cell in cells if cell["status"] == "ok")
    numbers = (statistics.median(errors), percentile(errors, 0.95), errors[-1], moved, statistics.median(alongside))
    return [str(len(errors)), *map(percent, numbers)]


def planning_table(results: Results) -> str:
    """Trace by budget: each strategy's planning time, and the gap of its plan."""
    names = list(dict.fromkeys(name for cell in results["cells"] for name in cell["strategies"]))
    rows = [
        [
            f"{cell['title']} ({cell['calls']} calls)",
            f"{cell['budget_percent']} % ({mib(cell['budget_nbytes'])})",
            *(_planned(cell["strategies"].get(name)) for name in names),
        ]
        for cell in results["cells"]
    ]
    lines = [table(["trace", "budget", *(f"`{name}`" for name in names)], rows, left=2)]
    reference = results["settings"]["reference"]
    longest: dict[str, tuple[str, float]] = {}
    for cell in results["cells"]:
        record = cell["strategies"].get(reference)
        if record is not None and record["status"] == "ok":
            before = longest.get(cell["model"], ("", 0.0))[1]
            longest[cell["model"]] = (cell["title"], max(before, record["planning_seconds"]))
    if longest:
        parts = [
            f"{title} **{seconds:.2f} s** (target ≤ {PLANNING_TARGETS[model]:g} s)"
            for model, (title, seconds) in longest.items()
        ]
        lines.append(f"Longest of `{reference}`: {', '.join(parts)}.")
    return "\n\n".join([*lines, provenance(results)])


def _planned(record: Cell | None) -> str:
    if record is None:
        return ""
    if record["status"] == "infeasible":
        return f"needs {mib(record['needed_nbytes'])}"
    if record["status"] != "ok":
        return str(record.get("reason", record["status"]))
    return f"{record['planning_seconds']:.2f} s ({percent(record['gap'])})"
