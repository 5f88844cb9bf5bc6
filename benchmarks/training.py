"""Training within budgets: memory, time and bits against plain PyTorch, side by side.

Every arm is a process in a memory cgroup of its own, over the baseline of a started interpreter that has trained
something tiny. All arms of a model train by turns, one iteration each. A budget is a part of what plain training was
measured to take at most; or all that a rival takes, which has no budget of its own.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import results
from benchmarks.arm import ArmError, Child
from benchmarks.run import say
from benchmarks.training_models import TRAINED, Trained, find
from penstock.cgroup import MemoryGroup, memory_group
from penstock.training.links import measure_links
from penstock.training.pool import library

LEAD_STEPS, COMPARED_STEPS = 9, 20
"""Iterations until a plan is followed, and after how many the bits are compared."""

MOST_LEAD_STEPS = 20
"""So long it is waited for a plan with which iterations stay within the budget."""
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


@dataclass
class Trainee:
    """One arm, and what it answered.

    Attributes:
        against: whose memory its budget is a part of; its own name for those that have none.
        percent: of that.
        parameters: whether weights and gradients may leave, too.
        failure: why it is not measured.
    """

    name: str
    against: str
    percent: float
    budget_nbytes: int = 0
    parameters: bool = False
    child: Child | None = None
    failure: ArmError | None = None
    losses: list[float] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    digest: str = ""

    def train(self, count: int, *, is_measured: bool = False) -> dict[str, Any] | None:
        """So many iterations; None once it has failed."""
        if self.child is None or self.failure is not None:
            return None
        try:
            answer = self.child.ask("steps", count=count)
        except ArmError as error:
            self.failure = error
            return None
        self.losses += answer["losses"]
        if is_measured:
            self.answers.append(answer)
        return answer

    def settle(self) -> None:
        """Until what it follows keeps its budget, or has had its time to."""
        answer = self.train(LEAD_STEPS + 1)
        while answer is not None and len(self.losses) < MOST_LEAD_STEPS:
            answer = self.train(1)
            if answer is not None and answer["peak_nbytes"] <= self.budget_nbytes:
                break

    def finish(self, steps: int) -> None:
        """The rest of the iterations after which bits are compared."""
        self.train(steps - len(self.losses))
        if self.child is not None and self.failure is None:
            self.digest = self.child.ask("digest")["digest"]

    @property
    def seconds(self) -> list[float]:
        """Of each iteration that counts."""
        return [answer["seconds"][0] for answer in self.answers]

    @property
    def peak_nbytes(self) -> int:
        """The most that such an iteration took."""
        return max(answer["peak_nbytes"] for answer in self.answers)


def _measure(
    trained: Trained, budgets: Sequence[tuple[str, float]], rounds: int, parameters_below: float
) -> list[dict[str, Any]]:
    """One model: all its arms by turns."""
    with contextlib.ExitStack() as stack:
        references = {name: Trainee(name, name, 100) for name in dict.fromkeys(["plain", *(n for n, _ in budgets)])}
        for reference in references.values():
            _start(stack, trained, reference)
            reference.train(LEAD_STEPS)
        trainees = []
        for name, percent in budgets:
            taken = references[name].train(1)
            if taken is not None:
                budget_nbytes = int(taken["peak_nbytes"] * percent / 100)
                trainees.append(Trainee("autoswap", name, percent, budget_nbytes, percent < parameters_below))
                _start(stack, trained, trainees[-1])
                trainees[-1].settle()
        everyone = [*references.values(), *trainees]
        for _ in range(rounds):
            for trainee in everyone:
                trainee.train(1, is_measured=True)
        steps = max(COMPARED_STEPS, *(len(trainee.losses) for trainee in everyone))
        for trainee in everyone:
            trainee.finish(steps)
        return [_cell(trained, trainee, references) for trainee in trainees]


def _start(stack: contextlib.ExitStack, trained: Trained, trainee: Trainee) -> None:
    try:
        start = {"budget_nbytes": trainee.budget_nbytes, "parameters": trainee.parameters}
        trainee.child = stack.enter_context(_arm(trained, trainee.name, **start))
    except ArmError as error:
        trainee.failure = error


def _cell(trained: Trained, trainee: Trainee, references: dict[str, Trainee]) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "model": trained.name,
        "title": trained.title,
        "rows": trained.rows,
        "against": trainee.against,
        "budget_percent": trainee.percent,
        "budget_nbytes": trainee.budget_nbytes,
        "parameters": trainee.parameters,
        "status": "ok",
    }
    reference = references[trainee.against]
    failure = trainee.failure or reference.failure
    if failure is not None:
        return cell | {"status": failure.status, "reason": failure.reason, "needed_nbytes": failure.needed_nbytes}
    last = trainee.answers[-1]
    ratios = [own / other for own, other in zip(trainee.seconds, reference.seconds, strict=True)]
    return cell | {
        "reference_seconds": reference.seconds,
        "reference_peak_nbytes": reference.peak_nbytes,
        "autoswap_seconds": trainee.seconds,
        "autoswap_peak_nbytes": trainee.peak_nbytes,
        "overhead": statistics.median(ratios) - 1,
        "saved": 1 - trainee.peak_nbytes / reference.peak_nbytes,
        "is_identical": trainee.losses == references["plain"].losses[: len(trainee.losses)]
        and trainee.digest == references["plain"].digest,
        "compared_steps": len(trainee.losses),
        "planned": last.get("planned"),
        "stats": last.get("stats"),
        "pool": last.get("pool"),
    }


def _told(cell: dict[str, Any]) -> str:
    head = f"{cell['title']}, {cell['budget_percent']:g} % of {cell['against']}: "
    if cell["status"] != "ok":
        return head + f"{cell['status']}, {cell['reason']}"
    return head + (
        f"{cell['saved']:.1%} less memory, {cell['overhead']:+.1%} time, "
        f"{'identical' if cell['is_identical'] else 'OTHER BITS'} after {cell['compared_steps']} iterations"
    )


def main(
    models: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(t.name for t in TRAINED),
    budgets: Annotated[str, typer.Option(help="Percents of plain training's peak.")] = "100,70,60,50,40",
    parameters_below: Annotated[
        float, typer.Option(help="Below this percent of plain training's peak weights and gradients may leave, too.")
    ] = 60,
    rivals: Annotated[str, typer.Option(help="Of saving and checkpoint, separated by commas.")] = "saving,checkpoint",
    rounds: Annotated[int, typer.Option(help="Iterations of each arm that count.")] = 7,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = _DEFAULT_OUT,
) -> None:
    """Measure training within budgets."""
    found = results.envelope(
        "training", {"budgets": budgets, "parameters_below": parameters_below, "rivals": rivals, "repeats": rounds}
    )
    wanted = [("plain", float(percent)) for percent in budgets.split(",") if percent]
    wanted += [(rival, 100.0) for rival in rivals.split(",") if rival]
    cells: list[dict[str, Any]] = []
    for name in models.split(","):
        out_link, back_link = measure_links(None)
        rates = {"out_bytes_per_second": out_link.bytes_per_second, "back_bytes_per_second": back_link.bytes_per_second}
        for cell in _measure(find(name), wanted, rounds, parameters_below):
            say(_told(cell))
            cells.append(cell | rates)
        results.write(out, found | {"cells": cells})


if __name__ == "__main__":
    typer.run(main)
