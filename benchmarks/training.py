"""Training within budgets: memory, time and bits against plain PyTorch, side by side.

Every arm is a process in a memory cgroup of its own, over the baseline of a started interpreter that has trained
something tiny. Arms train by turns, one iteration each; a budget is a part of what plain training was measured to take
at most.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import results
from benchmarks.arm import ArmError, Child
from benchmarks.run import say
from benchmarks.training_models import TRAINED, Trained, find
from penstock.cgroup import MemoryGroup, memory_group
from penstock.training.pool import library

LEAD_STEPS, COMPARED_STEPS = 9, 20
"""Iterations until a plan is followed, and after how many the bits are compared."""
_DEFAULT_OUT = results.FOLDER / "training.json"


@contextlib.contextmanager
def _arm(trained: Trained, way: str, **start: Any) -> Iterator[Child]:
    preload = {"LD_PRELOAD": str(library())} if way == "autoswap" else {}
    with memory_group() as group, contextlib.closing(Child("benchmarks.training_child", **preload)) as child:
        child.send({"model": trained.name, "way": way, "group": _where(group)} | start)
        child.wait()
        yield child


def _where(group: MemoryGroup) -> dict[str, Any]:
    return {"path": str(group.path), "version": group.version}


def _measure(trained: Trained, percent: float, rounds: int, scores: str) -> dict[str, Any]:
    """One budget: plain and swapped training by turns."""
    with _arm(trained, "plain", budget_nbytes=0, scores=scores) as plain:
        lead = plain.ask("steps", count=LEAD_STEPS)
        losses = {"plain": lead["losses"], "autoswap": []}
        peak_nbytes = plain.ask("steps", count=1)
        losses["plain"] += peak_nbytes["losses"]
        budget_nbytes = int(peak_nbytes["peak_nbytes"] * percent / 100)
        cell: dict[str, Any] = {
            "model": trained.name,
            "title": trained.title,
            "rows": trained.rows,
            "budget_percent": percent,
            "budget_nbytes": budget_nbytes,
            "scores": scores,
            "status": "ok",
        }
        try:
            with _arm(trained, "autoswap", budget_nbytes=budget_nbytes, scores=scores) as swapped:
                losses["autoswap"] += swapped.ask("steps", count=LEAD_STEPS + 1)["losses"]
                arms, answers = {"plain": plain, "autoswap": swapped}, {"plain": [], "autoswap": []}
                for _ in range(rounds):
                    for name, arm in arms.items():
                        answers[name].append(arm.ask("steps", count=1))
                        losses[name] += answers[name][-1]["losses"]
                for name, arm in arms.items():
                    more = max(COMPARED_STEPS - len(losses[name]), 0)
                    if more:
                        losses[name] += arm.ask("steps", count=more)["losses"]
                digests = {name: arm.ask("digest")["digest"] for name, arm in arms.items()}
        except ArmError as error:
            return cell | {"status": error.status, "reason": error.reason, "needed_nbytes": error.needed_nbytes}
        for name in arms:
            cell[f"{name}_seconds"] = [answer["seconds"][0] for answer in answers[name]]
            cell[f"{name}_peak_nbytes"] = max(answer["peak_nbytes"] for answer in answers[name])
        last = answers["autoswap"][-1]
        ratios = [s / p for s, p in zip(cell["autoswap_seconds"], cell["plain_seconds"], strict=True)]
        return cell | {
            "overhead": statistics.median(ratios) - 1,
            "saved": 1 - cell["autoswap_peak_nbytes"] / cell["plain_peak_nbytes"],
            "is_identical": losses["plain"] == losses["autoswap"] and len(set(digests.values())) == 1,
            "compared_steps": len(losses["plain"]),
            "planned": last.get("planned"),
            "stats": last.get("stats"),
            "pool": last.get("pool"),
        }


def _told(cell: dict[str, Any]) -> str:
    head = f"{cell['title']}, {cell['budget_percent']:g} %: "
    if cell["status"] != "ok":
        return head + f"{cell['status']}, {cell['reason']}"
    return head + (
        f"{cell['saved']:.1%} less memory, {cell['overhead']:+.1%} time, "
        f"{'identical' if cell['is_identical'] else 'OTHER BITS'} after {cell['compared_steps']} iterations"
    )


def main(
    models: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(t.name for t in TRAINED),
    budgets: Annotated[str, typer.Option(help="Percents of plain training's peak.")] = "85,75,65,55,45",
    scores: Annotated[str, typer.Option(help="Names, separated by commas.")] = "best",
    rounds: Annotated[int, typer.Option(help="Iterations of each arm that count.")] = 7,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = _DEFAULT_OUT,
) -> None:
    """Measure training within budgets."""
    found = results.envelope("training", {"budgets": budgets, "scores": scores, "repeats": rounds})
    cells: list[dict[str, Any]] = []
    for name in models.split(","):
        for percent in map(float, budgets.split(",")):
            for score in scores.split(","):
                cell = _measure(find(name), percent, rounds, score)
                say(_told(cell))
                cells.append(cell)
                results.write(out, found | {"cells": cells})


if __name__ == "__main__":
    typer.run(main)
