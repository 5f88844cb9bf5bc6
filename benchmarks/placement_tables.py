"""Markdown table of placements: a pure function of the JSON."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.markdown import Cell, Results, provenance, table

MEAN_TARGETS = {10.0: 1.05, 60.0: 1.02}
WORST_TARGET, MODEL_TARGET = 1.08, 1.0


def placement_table(results: Results) -> str:
    """Instance or model by way: height as a ratio to the load."""
    cells = results["cells"]
    names = list(dict.fromkeys(name for cell in cells for name in cell["ways"]))
    head = ["", "buffers", *(_title(name) for name in names)]
    rows = [
        [cell["title"], str(cell["buffers"]), *(_ratio(cell["ways"].get(name)) for name in names)] for cell in cells
    ]
    hard = [cell for cell in cells if cell["kind"] == "instance"]
    if hard:
        means = [_mean(hard, name) for name in names]
        rows.insert(len(hard), ["mean of these", "", *(f"{mean:.3f}" for mean in means)])
    lines = [table(head, rows, left=1), *_verdicts(results, hard)]
    return "\n\n".join([*lines, provenance(results)])


def _verdicts(results: Results, hard: Sequence[Cell]) -> list[str]:
    parts = []
    for seconds in results["settings"]["seconds"] if hard else ():
        ratios = [cell["ways"][f"penstock {seconds:g} s"]["ratio"] for cell in hard]
        target = f" (target ≤ {MEAN_TARGETS[seconds]:g})" if seconds in MEAN_TARGETS else ""
        parts.append(
            f"mean in {seconds:g} s **{sum(ratios) / len(ratios):.3f}**{target}, "
            f"worst {max(ratios):.3f} (≤ {WORST_TARGET:g})"
        )
    models = [cell for cell in results["cells"] if cell["kind"] == "model"]
    if models:
        name = f"penstock {results['settings']['seconds'][0]:g} s"
        worst = max(cell["ways"][name]["ratio"] for cell in models)
        longest = max(cell["ways"][name]["seconds"] for cell in models)
        parts.append(f"models at most **{worst:.3f}** (target {MODEL_TARGET:.3f}), in at most {longest:.1f} s")
    rival = results["settings"]["omnimalloc"]
    notes = f"† Proved: none is lower.{f' omnimalloc {rival}.' if rival else ''}"
    return [f"Penstock: {'; '.join(parts)}.", notes] if parts else []


def _title(name: str) -> str:
    way, _, limit = name.partition(" ")
    titles = {"smartpool": "SmartPool's rule", "penstock": "Penstock"}
    return f"{titles.get(way, f'omnimalloc `{way}`')}{f', {limit}' if limit else ''}"


def _ratio(record: Cell | None) -> str:
    return "" if record is None else f"{record['ratio']:.3f}{' †' if record['proved_optimal'] else ''}"


def _mean(cells: Sequence[Cell], name: str) -> float:
    return sum(cell["ways"][name]["ratio"] for cell in cells) / len(cells)
