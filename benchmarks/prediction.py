"""How well one profile predicts: passes inside several budgets, planned in every way, against what was predicted.

A model's *profile* is how long each of its layers computes, as the product itself timed it once. The prediction of a
configuration is its plan, simulated with the profile's times and, turn by turn, with the storage bandwidth that was
measured right before and after, in the stream's own memory: storage gives half as much from one moment to the next.
What counts is the mean of the turns. Nothing of the configuration's own passes goes into it. The resident model runs
in between: by how much its latency has moved since the profile was taken is how much of an error is the machine's. The
error *alongside* is that of the same prediction with all times of the profile moved by as much.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import results, storage
from benchmarks.apart import run_apart
from benchmarks.arm import state_folder
from benchmarks.model import Model
from benchmarks.models import RUN, find
from benchmarks.recast import recast
from benchmarks.run import forget_state, prepare_all, say
from benchmarks.session import Session
from benchmarks.strategies import lacking
from benchmarks.summaries import absolute_errors, percentile
from benchmarks.ways import WAYS
from penstock.errors import BudgetInfeasibleError, PenstockError
from penstock.planning.plan import Prediction
from penstock.planning.simulate import predict
from penstock.planning.strategies.registry import names

LEAD_PASSES, TIMED_PASSES, RESIDENT_PASSES = 1, 2, 2
TURNS = 4
BUDGETS, PROFILE_BUDGET = "25,45,70", 50
PROFILE_PASSES = 5
_DEFAULT_OUT = results.FOLDER / "prediction.json"


@dataclass(frozen=True)
class Profile:
    """What one stream timed.

    Attributes:
        call_seconds: of each layer call.
        resident_seconds: of the resident model's pass at that moment.
    """

    budget_nbytes: int
    call_seconds: tuple[float, ...]
    resident_seconds: float


@dataclass(frozen=True)
class Turn:
    """Some passes in a row.

    Attributes:
        rates: the storage's bandwidth right before and right after them, in bytes per second.
        seconds, stall_seconds: of each pass.
        resident_seconds: of the resident model, after that.
    """

    rates: tuple[float, float]
    seconds: tuple[float, ...]
    stall_seconds: tuple[float, ...]
    resident_seconds: float

    @property
    def median_seconds(self) -> float:
        """Of a pass."""
        return statistics.median(self.seconds)

    @property
    def bytes_per_second(self) -> float:
        """The rate at which as many bytes take the mean of the times that they take at `rates`."""
        return statistics.harmonic_mean(self.rates)


def main(
    models: Annotated[str, typer.Option(help="Comma-separated names.")] = ",".join(RUN),
    budgets: Annotated[str, typer.Option(help="Per cent of the weights.")] = BUDGETS,
    strategies: Annotated[str, typer.Option(help="Comma-separated names.")] = ",".join(names()),
    profile: Annotated[int, typer.Option(help="The profile's budget, per cent of the weights.")] = PROFILE_BUDGET,
    turns: Annotated[int, typer.Option(min=1, help=f"Of {TIMED_PASSES} timed passes each.")] = TURNS,
    out: Annotated[Path, typer.Option(help="The results file.")] = _DEFAULT_OUT,
    tiny: Annotated[bool, typer.Option(help="Tiny twins of the models: only to see that all works.")] = False,
) -> None:
    """Measure how far predictions are off."""
    chosen = [find(name, tiny=tiny) for name in models.split(",")]
    wanted = [name for name in strategies.split(",") if lacking(name) is None]
    percents = [int(part) for part in budgets.split(",")]
    statistic = f"means of {turns} turns, medians of {TIMED_PASSES} passes each"
    settings = {"statistic": statistic, "profile_budget": profile, "strategies": wanted, "tiny": tiny}
    everything = {**results.envelope("prediction", settings), "profiles": {}, "cells": []}
    prepare_all(chosen, [])
    for model in chosen:
        found = run_apart(measure, model.name, tiny, percents, wanted, profile, turns)
        everything["profiles"][model.name], cells = found
        everything["cells"] += [{"model": model.name, "title": model.title, **cell} for cell in cells]
        results.write(out, everything)
        say(describe(model, cells))
    say(f"wrote {out}")


def measure(
    name: str, tiny: bool, percents: Sequence[int], strategies: Sequence[str], profile_percent: int, turns: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The profile and the configurations of one model. Runs in a process of its own.

    Raises:
        BudgetInfeasibleError: the profile's budget is too small.
    """
    model = find(name, tiny=tiny)
    weights_nbytes = model.weights_nbytes()
    resident = Session(WAYS["resident"], model, 0)
    resident.load()
    forget_state()
    profile = take_profile(model, weights_nbytes * profile_percent // 100, resident)
    kept = state_folder().with_name("profile")
    _replace(kept, state_folder())
    cells = []
    for percent, strategy in itertools.product(percents, strategies):
        _replace(state_folder(), kept)  # what other configurations have learnt is not the profile's
        session = Session(WAYS[strategy], model, weights_nbytes * percent // 100)
        head = {"budget_percent": percent, "strategy": strategy}
        try:
            cells.append({**head, "status": "ok", **_configuration(session, model, profile, resident, turns)})
        except BudgetInfeasibleError as error:
            cells.append({**head, "status": "infeasible", "needed_nbytes": error.needed_nbytes})
        except PenstockError as error:
            cells.append({**head, "status": "error", "reason": f"{type(error).__name__}: {error}"})
        finally:
            session.close()
    return asdict(profile), cells


def _replace(folder: Path, by: Path) -> None:
    """Makes `folder` a copy of the folder `by`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(by, folder)


def take_profile(model: Model, budget_nbytes: int, resident: Session) -> Profile:
    """Stream the model until its layers are timed.

    Raises:
        BudgetInfeasibleError: the budget is too small.
    """
    session = Session(WAYS["penstock"], model, budget_nbytes)
    try:
        session.load()
        session.settle()
        trace = session.trace()
        samples = resident.burst(lead=1, timed=PROFILE_PASSES)["samples"]
    finally:
        session.close()
    seconds = statistics.median(sample["seconds"] for sample in samples)
    if not trace.is_timed:
        raise RuntimeError(f"no pass of {model.title} was timed")
    return Profile(budget_nbytes, tuple(call.seconds for call in trace.calls), seconds)


def _configuration(session: Session, model: Model, profile: Profile, resident: Session, turns: int) -> dict[str, Any]:
    """One budget and strategy, measured, and predicted from the profile, turn by turn."""
    session.load()
    session.settle()
    probe = storage.BandwidthProbe.of_file(model.weights_file)
    taken = [_turn(session, resident, probe) for _ in range(turns)]
    found = session.installation()

    def predicted(turn: Turn, moved: float) -> Prediction:
        times = [moved * seconds for seconds in profile.call_seconds]
        return predict(recast(found.problem, turn.bytes_per_second, call_seconds=times), found.plan)

    told = [predicted(turn, 1.0) for turn in taken]
    alongside = [predicted(turn, turn.resident_seconds / profile.resident_seconds) for turn in taken]
    measured_seconds = statistics.mean(turn.median_seconds for turn in taken)
    predicted_seconds = statistics.mean(item.warm_seconds for item in told)
    return {
        "budget_nbytes": found.plan.budget_nbytes,
        "predicted_seconds": predicted_seconds,
        "measured_seconds": measured_seconds,
        "error": predicted_seconds / measured_seconds - 1,
        "planned_seconds": found.plan.prediction.warm_seconds,
        "stall_seconds": statistics.mean(statistics.median(turn.stall_seconds) for turn in taken),
        "predicted_stall_seconds": statistics.mean(item.stall_seconds for item in told),
        "machine_moved": statistics.mean(turn.resident_seconds for turn in taken) / profile.resident_seconds - 1,
        "alongside_error": statistics.mean(item.warm_seconds for item in alongside) / measured_seconds - 1,
        "turns": [asdict(turn) for turn in taken],
    }


def _turn(session: Session, resident: Session, probe: storage.BandwidthProbe) -> Turn:
    def rate() -> float:
        return session.bandwidth()["bytes_per_second"] or probe.measure()

    before = rate()
    samples = session.burst(LEAD_PASSES, TIMED_PASSES)["samples"]
    after = rate()
    base = resident.burst(lead=1, timed=RESIDENT_PASSES)["samples"]
    return Turn(
        (before, after),
        tuple(sample["seconds"] for sample in samples),
        tuple(sample["stall_seconds"] for sample in samples),
        statistics.median(sample["seconds"] for sample in base),
    )


def describe(model: Model, cells: Sequence[dict[str, Any]]) -> str:
    """One line about a model."""
    errors = absolute_errors(cells, "error")
    if not errors:
        return f"{model.title}: nothing could run"
    return (
        f"{model.title}: {len(errors)} of {len(cells)} configurations, absolute error "
        f"{100 * statistics.median(errors):.1f} % median, {100 * percentile(errors, 0.95):.1f} % at the 95th percentile"
    )


if __name__ == "__main__":
    typer.run(main)
