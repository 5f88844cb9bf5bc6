"""`penstock train-plan`: what a training script's iteration would cost within any budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.execute import with_pool
from penstock.cli.options import Json, Timeline, UsageError, check_writable, parse_budget
from penstock.cli.sweep import check_drawings, show_curve
from penstock.cli.terminal import Terminal
from penstock.errors import BudgetInfeasibleError, PlanError

if TYPE_CHECKING:
    from penstock.planning.swap_plan import SwapPlan
    from penstock.planning.swap_record import SwapRecord


def train_plan(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A Python program that trains.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS...]", help="Its own, after `--`.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget", metavar="SIZE", parser=parse_budget, help="Also show the plan within this: 6GiB, or bytes."
        ),
    ] = None,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Weights and gradients may leave, too (of a script without autoswap).")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Activations may be computed again (of a script without autoswap).")
    ] = False,
    atomic_steps: Annotated[
        bool, typer.Option("--atomic-steps", help="Nothing comes back in mid-step (of a script without autoswap).")
    ] = False,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it as FILE.png or FILE.svg.")] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it as an interactive page, FILE.html.")
    ] = None,
    timeline: Timeline = None,
    as_json: Json = False,
) -> None:
    """Record an iteration of SCRIPT, and show what any budget would cost it. SCRIPT runs until then, and is ended."""
    if not script.is_file():
        raise UsageError(f"{script}: no such file: name a Python program that trains")
    if timeline is not None and budget is None:
        raise UsageError("--timeline is of one budget: give --budget, too")
    check_drawings(picture, page)
    check_writable("--timeline", timeline)
    terminal = Terminal(as_json=as_json)
    asked = {"parameters": parameters, "recompute": recompute, "atomic_steps": atomic_steps}
    ways = [name for name, is_on in asked.items() if is_on]
    record = _record(script, arguments or [], ways)
    _show(terminal, record, script.name, budget, picture, page, timeline)


def _record(script: Path, arguments: list[str], ways: list[str]) -> SwapRecord:
    """What the script writes is for people, so it goes to standard error, too."""
    from penstock.planning.swap_record import SwapRecord
    from penstock.training.pool import CompilerMissingError
    from penstock.training.recording import UNFINISHED

    try:
        pool = with_pool()
    except (CompilerMissingError, UsageError) as error:
        print(f"{error}; recording without the pool", file=sys.stderr)
        pool = {}
    with tempfile.TemporaryDirectory(prefix="penstock-record-") as folder:
        result = Path(folder) / "record.json"
        command = [
            sys.executable,
            "-m",
            "penstock.training.recording",
            str(result),
            ",".join(ways),
            str(script),
            *arguments,
        ]
        done = subprocess.run(command, env={**os.environ, **pool}, stdout=sys.stderr, check=False)
        if done.returncode == UNFINISHED or (done.returncode == 0 and not result.is_file()):
            raise PlanError(f"{script} ended before two of its iterations were alike: have it train for ten steps")
        if done.returncode:
            raise PlanError(f"{script} failed (exit code {done.returncode}): mend it, as its own message says")
        return SwapRecord.from_json(result.read_bytes())


def _show(
    terminal: Terminal,
    record: SwapRecord,
    name: str,
    budget: int | None,
    picture: Path | None,
    page: Path | None,
    timeline: Path | None,
) -> None:
    from penstock.planning.swap_explain import explain_swaps
    from penstock.report.swapping import swap_curve, swap_tracks

    with terminal.progress() as report:
        curve = swap_curve(record, model=name, progress=lambda done, total: report("planning", done, total))
    show_curve(terminal, curve, picture, page)
    found = _plan(record, budget) if budget is not None else None
    if found is not None and budget is not None:
        terminal.show(explain_swaps(found, budget - found.limit_nbytes, record.kinds))
        if timeline is not None:
            swap_tracks(record.within(budget), found, record.names, f"{name}, predicted").save(timeline)
    terminal.emit(
        {"curve": json.loads(curve.to_json()), "plan": json.loads(found.to_json()) if found is not None else None}
    )


def _plan(record: SwapRecord, budget: int) -> SwapPlan:
    from penstock.budget import format_size
    from penstock.planning.swap import plan_swaps

    try:
        return plan_swaps(record.within(budget))
    except BudgetInfeasibleError as error:
        needed_nbytes = record.budget_nbytes(error.needed_nbytes)
        raise BudgetInfeasibleError(
            f"no plan is within {format_size(budget)}: set a budget of {format_size(needed_nbytes)}, or take smaller "
            "batches",
            needed_nbytes=needed_nbytes,
        ) from error
