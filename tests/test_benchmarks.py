"""The benchmark's tables: made from results files and from nothing else. Nothing is timed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))  # `benchmarks` is not installed

import typer  # noqa: E402
from benchmarks import report, results, tables  # noqa: E402
from benchmarks.models import MODELS  # noqa: E402

MIB = 2**20


def envelope(cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schema_version": results.SCHEMA_VERSION,
        "date": "2030-01-02T03:04:05+00:00",
        "commit": "abc123",
        "machine": {"cpu": "CPU", "cores": 2, "memory_nbytes": 8 * 2**30},
        "versions": {"torch": "2.13.0", "diffusers": None},
        "settings": {"repeats": 7},
        "cells": cells,
    }


def arm(median_seconds: float | None, *, killed_at_cap: bool = False) -> dict[str, Any]:
    return {"status": "ok", "median_seconds": median_seconds, "killed_at_cap": killed_at_cap}


def measured(percent: int, *, ratio: float, peak_mib: int, speedups: dict[str, float]) -> dict[str, Any]:
    return {
        "title": "ViT-L/16",
        "budget_percent": percent,
        "budget_nbytes": percent * MIB,
        "status": "ok",
        "resident_seconds": 0.5,
        "warm_seconds": 0.5 * ratio,
        "ratio": ratio,
        "stall_seconds": 0.012,
        "bytes_streamed": 80 * MIB,
        "bytes_per_second": 2e9,
        "peak_nbytes": peak_mib * MIB,
        "killed_at_cap": False,
        "bit_identical": True,
        "speedups": speedups,
        "arms": {name: arm(0.5 * ratio * by) for name, by in speedups.items()},
    }


def infeasible() -> dict[str, Any]:
    return {
        "title": "VGG-16",
        "budget_percent": 10,
        "budget_nbytes": 10 * MIB,
        "status": "infeasible",
        "needed_nbytes": 99 * MIB,
        "arms": {"accelerate": {**arm(None), "status": "killed"}},
    }


CELLS = [
    measured(20, ratio=1.02, peak_mib=20, speedups={"accelerate": 3.0, "paging": 1.7}),
    measured(50, ratio=1.30, peak_mib=60, speedups={"accelerate": 4.0}),
    infeasible(),
]


def row(table: str, *cells: str) -> str:
    """The only row that has all of `cells`."""
    (found,) = [line for line in table.splitlines() if all(f"| {cell} |" in line for cell in cells)]
    return found


def test_the_main_table_has_a_row_for_each_cell_and_the_median_beside_the_target() -> None:
    table = tables.main_table(envelope(CELLS))
    assert row(table, "ViT-L/16", "20 % (20 MiB)", "500 ms", "510 ms", "1.02", "12 ms", "2.0 GB/s", "100 %")
    assert "Median ratio over 2 cells: **1.160** (target ≤ 1.05)" in table


def test_a_peak_over_the_budget_stands_out() -> None:
    table = tables.main_table(envelope(CELLS))
    assert row(table, "50 % (50 MiB)", "**120 %**")
    assert "Peak within the budget: 1 of 2" in table


def test_a_cell_whose_process_was_killed_is_not_within_its_budget() -> None:
    killed = {**measured(20, ratio=1.0, peak_mib=19, speedups={}), "killed_at_cap": True}
    table = tables.main_table(envelope([killed, CELLS[0]]))
    assert "**95 % †**" in table
    assert "Peak within the budget: 1 of 2" in table
    assert "killed by the kernel" in table


def test_where_bits_differ_the_table_says_by_how_much() -> None:
    sliced = {**measured(20, ratio=1.0, peak_mib=19, speedups={}), "bit_identical": False}
    sliced["arms"] = {"penstock": {"relative_error": 1.9e-7}}
    table = tables.main_table(envelope([sliced, CELLS[0]]))
    assert "Bit-identical: 1 of 2. The others differ by at most 2e-07 of the largest output." in table


def test_an_infeasible_cell_says_what_it_needs() -> None:
    assert row(tables.main_table(envelope(CELLS)), "VGG-16", "needs 99 MiB")


def test_rivals_are_compared_where_they_ran_and_a_killed_one_is_named() -> None:
    table = tables.rivals_table(envelope(CELLS))
    assert "1530 ms (3.00×)" in row(table, "20 %")
    assert "out of memory" in row(table, "VGG-16")
    assert "accelerate `disk_offload` **3.50×** over 2 cells (target ≥ 2.5×)" in table
    assert "OS paging **1.70×** over 1 cells" in table


def test_a_rival_that_was_killed_at_its_cap_and_timed_without_is_marked() -> None:
    cells = [measured(percent, ratio=1.0, peak_mib=20, speedups={"accelerate": 3.0}) for percent in (20, 50)]
    cells[0]["arms"]["accelerate"]["killed_at_cap"] = True
    cells[0]["speedups"]["accelerate"] = 2.0
    table = tables.rivals_table(envelope(cells))
    assert "(2.00×) †" in row(table, "20 %")
    assert "**2.50×** over 2 cells, 3.00× over the 1 that it survives" in table


def test_the_overhead_table_has_both_budgets_of_a_model_in_one_row() -> None:
    cells = [
        {"title": "BERT-L", "case": "100 %", "ratio": 1.004, "bytes_streamed": 3 * MIB},
        {"title": "BERT-L", "case": "ample", "ratio": 0.999, "bytes_streamed": 0},
    ]
    assert row(tables.overhead_table(envelope(cells)), "BERT-L", "1.004", "3 MiB", "0.999")


def test_the_cold_table_gives_untraced_starts_apart() -> None:
    cell = {
        "title": "BERT-L",
        "budget_nbytes": 268 * MIB,
        "status": "ok",
        "medians": {"penstock": 0.6, "penstock_first": 2.5, "from_pretrained": 1.5},
        "ratio": 1.1,
        "speedup": 2.5,
    }
    failed = {"title": "VGG-16", "budget_nbytes": 55 * MIB, "status": "error"}
    table = tables.cold_table(envelope([cell, failed]))
    assert row(table, "BERT-L", "600 ms", "1.10", "1500 ms", "2.50×", "2500 ms")
    assert row(table, "VGG-16", "error")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results.write(tmp_path / "run.json", envelope(CELLS))
    return tmp_path


def test_tables_go_between_their_markers_and_a_second_time_changes_nothing(folder: Path) -> None:
    text = "before\n<!-- benchmark:main -->\nold\n<!-- /benchmark:main -->\nafter\n"
    once = report.fill_in(text, folder)
    assert once.startswith("before\n<!-- benchmark:main -->\n| model |")
    assert once.endswith("<!-- /benchmark:main -->\nafter\n")
    assert "old" not in once
    assert report.fill_in(once, folder) == once


def placed(ratio: float, *, proved: bool = False) -> dict[str, Any]:
    return {"height_nbytes": 1, "ratio": ratio, "seconds": 1.5, "proved_optimal": proved}


def test_placements_are_compared_by_height_and_only_hard_instances_count_for_the_mean() -> None:
    ways = ("smartpool", "penstock 10 s", "tabu_search 10 s")
    ratios = {"A": (1.3, 1.02, 1.1), "B": (1.5, 1.04, 1.2)}
    cells = [
        {"kind": "instance", "title": title, "buffers": 9, "ways": dict(zip(ways, map(placed, each), strict=True))}
        for title, each in ratios.items()
    ]
    model = {"smartpool": placed(1.25), "penstock 10 s": placed(1.0, proved=True)}
    cells.append({"kind": "model", "title": "BERT-L", "buffers": 400, "ways": model})
    everything = envelope(cells)
    everything["settings"] = {"repeats": 1, "seconds": [10.0], "omnimalloc": "1.0.0"}
    made = tables.TABLES["placement"][1](everything)
    row(made, "A", "9", "1.300", "1.020", "1.100")
    row(made, "mean of these", "1.400", "1.030", "1.150")
    row(made, "BERT-L", "400", "1.250", "1.000 †", "")
    assert "mean in 10 s **1.030** (target ≤ 1.05), worst 1.040 (≤ 1.08)" in made
    assert "models at most **1.000**" in made


def test_lifetimes_of_a_pass_hold_at_once_what_its_dry_run_says() -> None:
    import numpy as np
    import torch
    from benchmarks.lifetimes import ALIGNMENT_NBYTES, lifetimes_of
    from benchmarks.problems import imagine_sources
    from benchmarks.ways import skeleton

    from penstock.dryrun import dry_trace
    from penstock.runtime.collecting import collect_weights

    model = MODELS["vgg16"].small()
    lower, upper, nbytes = lifetimes_of(model)
    load = max(int(nbytes[(lower <= moment) & (moment < upper)].sum()) for moment in np.unique(lower))
    arguments = sum(value.numel() * value.element_size() for value in model.inputs().values())
    module = skeleton(model)
    weights = collect_weights(module, imagine_sources(module), torch.device("cpu"))
    trace = dry_trace(module, module.forward, weights, (), model.inputs())
    assert trace is not None
    peak = trace.activations_nbytes - arguments
    assert peak <= load <= peak + ALIGNMENT_NBYTES * len(lower)


def test_a_table_without_results_stays_as_it_is(folder: Path) -> None:
    text = "<!-- benchmark:cold -->\nnothing yet\n<!-- /benchmark:cold -->"
    assert report.fill_in(text, folder) == text


def test_a_marker_of_no_table_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="no benchmark table 'speed'"):
        report.fill_in("<!-- benchmark:speed -->\n<!-- /benchmark:speed -->", folder)


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 0}))
    with pytest.raises(ValueError, match="measure again"):
        results.read(tmp_path / "run.json")


def test_check_fails_on_a_readme_that_is_out_of_date_and_leaves_it_alone(folder: Path) -> None:
    readme = folder / "README.md"
    readme.write_text("<!-- benchmark:rivals -->\nold\n<!-- /benchmark:rivals -->\n")
    app = typer.Typer()
    app.command()(report.main)
    outcome = CliRunner().invoke(app, ["--check", "--readme", str(readme), "--folder", str(folder)])
    assert outcome.exit_code == 1
    assert "old" in readme.read_text()


def test_the_readme_shows_what_the_results_say() -> None:
    readme = REPOSITORY / "README.md"
    if not readme.is_file():
        pytest.skip("there is no README yet")
    text = readme.read_text()
    assert report.fill_in(text, results.FOLDER) == text


@pytest.mark.parametrize("name", MODELS)
def test_each_model_has_a_tiny_twin_of_its_class_that_runs(name: str) -> None:
    import torch

    small = MODELS[name].small()
    with torch.inference_mode():
        output = small.build()(**small.inputs())
    assert (output if isinstance(output, torch.Tensor) else output[0]).isfinite().all()
