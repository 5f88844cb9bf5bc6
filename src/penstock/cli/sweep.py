"""`penstock plan --sweep`: delay against budget, for each strategy, as table, JSON, picture and page."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.cli.options import UsageError, check_writable
from penstock.cli.terminal import Report, Terminal
from penstock.models import ModelFolder

if TYPE_CHECKING:
    from penstock.report.curve import Curve
    from penstock.workload import Workload

_AUTO = "auto"


def check_drawings(picture: Path | None, page: Path | None) -> None:
    """Refuse, before anything is planned, what could not be drawn afterwards.

    Raises:
        UsageError: a file with another ending, or in a folder that is not there.
        PenstockError: what would draw it is not installed.
    """
    from penstock.report.style import import_matplotlib, import_plotly

    wanted = (("--picture", picture, (".png", ".svg"), import_matplotlib), ("--page", page, (".html",), import_plotly))
    for option, file, endings, importer in wanted:
        if file is not None:
            if file.suffix not in endings:
                raise UsageError(f"{option} {file}: give a file that ends in {' or '.join(endings)}")
            check_writable(option, file)
            importer()


def show_sweep(
    terminal: Terminal,
    folder: ModelFolder,
    cls: Any,
    example: dict[str, Any],
    *,
    strategies: Sequence[str] | None,
    measures: bool,
    picture: Path | None,
    page: Path | None,
) -> None:
    """Sweep the model in `folder`, called with `example`; with `measures`, run it in a handful of budgets too."""
    with terminal.progress() as report:
        report("planning", 0, 0)

        def find() -> Workload:
            return _workload(folder, cls, example)

        if measures:
            curve = _measured_curve(report, folder, cls, example, find, strategies)
        else:
            curve = _curve(report, find(), _title(cls, example), None, strategies)
    show_curve(terminal, curve, picture, page)
    terminal.emit(json.loads(curve.to_json()))


def show_curve(terminal: Terminal, curve: Curve, picture: Path | None, page: Path | None) -> None:
    """Draw a curve into these files, and show it as a table and in words."""
    from penstock.report import save_page, save_picture
    from penstock.report.curve_table import make_curve_table
    from penstock.report.curve_words import words_of

    if picture is not None:
        save_picture(curve, picture)
    if page is not None:
        save_page(curve, page)
    terminal.show(make_curve_table(curve))
    for line in words_of(curve):
        terminal.show(line)


def _curve(
    report: Report, workload: Workload, title: str, budgets: Sequence[int] | None, strategies: Sequence[str] | None
) -> Curve:
    return workload.sweep(title, budgets, strategies, lambda done, total: report("planning", done, total))


def _measured_curve(
    report: Report,
    folder: ModelFolder,
    cls: Any,
    example: dict[str, Any],
    find: Callable[[], Workload],
    strategies: Sequence[str] | None,
) -> Curve:
    """Measures first: what is predicted afterwards rests on times, memory and bandwidth of the same minutes."""
    from penstock import machine
    from penstock.arms import ArmSpec
    from penstock.planning.strategies import get
    from penstock.report.measured import learn, measure_points, spread
    from penstock.tensors import save_tensors

    machine.measure(folder.path, quick=True, progress=lambda done, total: report("measuring storage", done, total))
    title, default = _title(cls, example), get(_AUTO).name
    with tempfile.TemporaryDirectory(prefix="penstock-sweep-") as scratch:
        inputs = Path(scratch) / "inputs.safetensors"
        save_tensors(example, inputs)
        spec = ArmSpec(str(folder.path), folder.library, cls.__name__, (str(inputs),))
        workload = find()
        if not workload.trace.is_timed or not workload.trace.overhead_nbytes:
            report("timing layers", 0, 0)
            learn(spec, _roomy(workload.budgets([default])))
            workload = find()
        budgets = workload.budgets(strategies)
        # Not the very least: each process finds out anew what it takes, and one may need a little more than another.
        safe = [nbytes for nbytes in budgets if nbytes > min(workload.budgets([default]))] or budgets[-1:]
        measured = measure_points(spec, spread(safe), lambda done, total: report("measuring", done, total))
    workload = find()
    least_nbytes = min(workload.budgets(strategies))
    budgets = [least_nbytes, *(nbytes for nbytes in budgets if nbytes > least_nbytes)]
    chosen = strategies if strategies is None else [*strategies, default]
    return _curve(report, workload, title, budgets, chosen).with_measured(default, *measured)


def _roomy(budgets: Sequence[int]) -> int:
    """The largest of them that leaves half of the machine's memory free; else the smallest."""
    from penstock.machine import describe

    half_nbytes = describe().memory_nbytes // 2
    return max((nbytes for nbytes in budgets if nbytes <= half_nbytes), default=min(budgets))


def _workload(folder: ModelFolder, cls: Any, example: dict[str, Any]) -> Workload:
    """What such calls of the model in `folder` ask of any budget; its weights are not read."""
    from penstock.hub import load_skeleton
    from penstock.starting import Origin, skeleton_workload
    from penstock.terms import device_of

    skeleton = load_skeleton(cls, folder.path)
    origin = Origin(skeleton.checkpoint, skeleton.sources)
    return skeleton_workload(skeleton.module.eval(), origin, ((), example), device_of("cpu"))


def _title(cls: Any, example: dict[str, Any]) -> str:
    """`"BertModel, input_ids 1×128"`."""
    inputs = (f"{name} {'×'.join(map(str, tensor.shape))}" for name, tensor in list(example.items())[:2])
    return ", ".join([cls.__name__, *inputs])
