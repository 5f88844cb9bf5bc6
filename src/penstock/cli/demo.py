"""`penstock demo`: the whole thing on real weights."""

from __future__ import annotations

from dataclasses import asdict

import typer

from penstock.budget import format_size
from penstock.cli.options import Json
from penstock.cli.terminal import Terminal, bandwidth, make_table, milliseconds
from penstock.demo import DemoResult, Measured, run_demo

_SOURCES = {
    "cgroup": "a memory cgroup of the process's own: page cache and kernel memory included",
    "VmHWM": "growth of the process's resident set, since no memory cgroup can be made here",
}


def demo(as_json: Json = False) -> None:
    """Search sentences with a real model inside 16 MiB, run a 1.2 GB model inside 128 MiB, compare with resident."""
    terminal = Terminal(as_json=as_json)
    with terminal.progress() as report:
        result = run_demo(report)
    show_result(terminal, result)
    if not result.passed:
        raise typer.Exit(1)


def show_result(terminal: Terminal, result: DemoResult) -> None:
    """Prints the search's ranking and the table of models, or both as JSON."""
    first = result.models[0]
    terminal.show(f"Semantic search inside {format_size(first.budget_nbytes)}")
    for query, hits in result.ranking.items():
        terminal.show(f"\n  {query}")
        for hit in hits:
            terminal.show(f"    {hit.score:.2f}  {hit.sentence}")
    terminal.show("")
    headers = ["", *(model.title for model in result.models)]
    columns = [_column(model) for model in result.models]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    terminal.show(make_table(headers, rows))
    terminal.show(f"Latency: medians of alternating passes. Peak: from {_SOURCES[first.peak_source]}.")
    models = [{**asdict(model), "ratio": model.ratio, "passed": model.passed} for model in result.models]
    ranking = {query: [asdict(hit) for hit in hits] for query, hits in result.ranking.items()}
    terminal.emit({"passed": result.passed, "ranking": ranking, "models": models})


def _column(model: Measured) -> dict[str, str]:
    over = "" if model.peak_nbytes <= model.budget_nbytes else " OVER BUDGET"
    return {
        "weights": format_size(model.weights_nbytes),
        "budget": format_size(model.budget_nbytes),
        "peak over baseline": f"{format_size(model.peak_nbytes)}{over}",
        "resident": milliseconds(model.resident_seconds),
        "streamed": milliseconds(model.streamed_seconds),
        "ratio": f"{model.ratio:.2f}",
        "storage": bandwidth(model.bytes_per_second),
        "bit-identical": "yes" if model.identical else "no",
    }
