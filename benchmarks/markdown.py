"""Markdown that all tables share."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Results = dict[str, Any]
Cell = dict[str, Any]


def provenance(results: Results) -> str:
    """Where and when the numbers above it were measured."""
    machine, versions, settings = results["machine"], results["versions"], results["settings"]
    parts = [
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_nbytes'] / 2**30:.0f} GiB",
        ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        settings.get("statistic") or f"medians of {settings['repeats']}",
        results["date"][:10],
    ]
    return f"<sub>{'; '.join(parts)}. Commit {results['commit'] or 'unknown'}.</sub>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """A Markdown table whose first `left` columns are aligned to the left."""
    width = len(head)
    rule = [":--" if column < left else "--:" for column in range(width)]
    filled = [[*row, *[""] * (width - len(row))] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *filled])


def median_of(cells: Sequence[Cell], key: str) -> float:
    """The median of what the cells have under `key`."""
    return float(statistics.median(cell[key] for cell in cells))


def ms(seconds: float | None) -> str:
    """Milliseconds; nothing for None."""
    return "" if seconds is None else f"{1e3 * seconds:.0f} ms"


def mib(nbytes: float) -> str:
    """Mebibytes, and from ten thousand of them on gibibytes."""
    return f"{nbytes / 2**20:.0f} MiB" if nbytes < 10_000 * 2**20 else f"{nbytes / 2**30:.1f} GiB"


def percent(share: float) -> str:
    """A share in per cent, with one digit."""
    return f"{100 * share:.1f} %"
