"""One cell: one model inside one budget, several arms beside a resident one, in turns."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import storage
from benchmarks.arm import Arm, ArmError, limit_hits, open_arm
from benchmarks.model import Model
from benchmarks.results import median

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a streaming arm does when it has its turn, without a pause; others run the timed passes only."""

    lead: int = 2  # passes that are not timed: after a pause the arena is full
    timed: int = 1


@dataclass
class Run:
    """What one arm does in one cell."""

    arm: Arm
    samples: list[dict[str, Any]] = field(default_factory=list)
    loaded: dict[str, Any] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)
    cached_nbytes: int = 0
    failure: ArmError | None = None
    killed_at_cap: bool = False

    @property
    def alive(self) -> bool:
        """Whether it can be asked for another pass."""
        return self.failure is None


class Cell:
    """The arms of one cell while they run; see `open_cell`."""

    def __init__(self, model: Model, budget_nbytes: int, resident: Arm, stack: contextlib.ExitStack) -> None:
        self.model, self.budget_nbytes = model, budget_nbytes
        self._probe = storage.BandwidthProbe.of_file(model.weights_file)
        self._stack = stack
        self._resident, self.runs = Run(resident), []

    def start(self, names: Sequence[str]) -> None:
        """Starts the arms `names`; each loads its model and runs until its plan has settled."""
        self.runs = [Run(self._stack.enter_context(open_arm(name, self.model, self.budget_nbytes))) for name in names]
        for run in self.runs:
            run.arm.start()
        for run in self.runs:
            self._try(run, _get_ready)

    def take_turns(self, turns: int, turn: Turn) -> None:
        """Each arm in turn, in an order that goes round, so often.

        Raises:
            ArmError: the resident arm failed.
        """
        runs = [self._resident, *self.runs]
        for number in range(turns):
            for run in runs[number % len(runs) :] + runs[: number % len(runs)]:
                self._try(run, lambda run: self._take(run, turn))
        for run in self.runs:  # those that had to start again have fewer
            while run.alive and len(run.samples) < turns * turn.timed:
                self._try(run, lambda run: self._take(run, turn))

    def records(self) -> dict[str, Record]:
        """What each arm did, the resident one first; afterwards no arm is capped any more."""
        found = {run.arm.name: _record(run) for run in (self._resident, *self.runs)}
        reference = _output(self._resident)
        for run in self.runs:
            if reference is not None and run.alive:
                found[run.arm.name] |= _compared(_output(run), reference)
        return found

    def ask(self, name: str, verb: str, **arguments: Any) -> Record:
        """An answer of the arm `name`, to be asked for after `records`.

        Raises:
            ArmError: it failed.
        """
        return next(run for run in self.runs if run.arm.name == name).arm.ask(verb, **arguments)

    def _try(self, run: Run, step: Callable[[Run], None]) -> None:
        """An arm that fails fails alone, and the others go on; one that was killed at its cap starts again without."""
        if not run.alive:
            return
        try:
            step(run)
        except ArmError as error:
            if run is self._resident:
                raise
            if error.status != "killed" or not run.arm.is_capped:
                run.failure = error
                return
            run.arm.close()
            run.arm = self._stack.enter_context(open_arm(run.arm.name, self.model, self.budget_nbytes, capped=False))
            run.killed_at_cap = True
            run.samples, run.bandwidths = [], []
            run.arm.start()
            self._try(run, _get_ready)

    def _take(self, run: Run, turn: Turn) -> None:
        """Timed passes, storage measured right before; for Penstock right after, too, in its own memory if possible."""
        way = run.arm.way
        if way.streams:
            run.bandwidths.append(run.arm.ask("bandwidth")["bytes_per_second"] or self._probe.measure())
        elif run is not self._resident:
            _drop(run)
            run.bandwidths.append(self._probe.measure())
        run.samples += run.arm.ask("burst", lead=turn.lead if way.streams else 0, timed=turn.timed)["samples"]
        if way.streams:
            run.bandwidths.append(run.arm.ask("bandwidth")["bytes_per_second"] or self._probe.measure())


@contextlib.contextmanager
def open_cell(model: Model, budget_nbytes: int, names: Sequence[str], resident: Arm) -> Iterator[Cell]:
    """The arms `names` and the resident one, ready to take turns.

    An arm that the kernel kills at its cap starts again without one, which favours it, and is marked.

    Args:
        model: what to run.
        budget_nbytes: within how much.
        names: the arms to start.
        resident: the arm beside them, running already: one serves all budgets.
    """
    with contextlib.ExitStack() as stack:
        cell = Cell(model, budget_nbytes, resident, stack)
        cell.start(names)
        yield cell


def bandwidth(record: Record) -> float:
    """Bytes per second that storage gave a streaming arm: at least what it drew, if a probe found less."""
    drawn = [read / seconds for read, seconds in zip(record["bytes_read"], record["seconds"], strict=True)]
    return max(statistics.median(drawn), statistics.median(record["bandwidths"]))


def _get_ready(run: Run) -> None:
    run.arm.wait()
    _drop(run)
    run.loaded = run.arm.ask("load")
    run.arm.ask("settle")


def _drop(run: Run) -> None:
    way, model = run.arm.way, run.arm.model
    if way.uses_page_cache:
        run.arm.ask("drop")
        run.cached_nbytes = max(run.cached_nbytes, storage.cached_nbytes(way.folder(model)))


def _record(run: Run) -> Record:
    group, failure = run.arm.group, run.failure
    record: Record = {
        "status": failure.status if failure is not None else "ok",
        "reason": failure.reason if failure is not None else None,
        "needed_nbytes": failure.needed_nbytes if failure is not None else None,
        "median_seconds": median([sample["seconds"] for sample in run.samples]) if run.alive else None,
        "seconds": [sample["seconds"] for sample in run.samples],
        "bandwidths": run.bandwidths,
        "capped": run.arm.is_capped,
        "killed_at_cap": run.killed_at_cap,
        "peak_nbytes": group.peak_nbytes() if group is not None else None,
        "limit_hits": limit_hits(group) if group is not None else None,
        "peak_source": f"cgroup v{group.version}" if group is not None else None,
        "cached_nbytes_before_pass": run.cached_nbytes,
        **run.loaded,
    }
    if run.arm.way.streams:
        for name in ("stall_seconds", "bytes_read", "bytes_streamed"):
            record[name] = [sample[name] for sample in run.samples]
    return record


def _output(run: Run) -> torch.Tensor | None:
    """The last output. Asked for last of all: what it takes to write it is not the arm's."""
    if not run.alive:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "output.safetensors"
        try:
            if run.arm.group is not None:
                run.arm.group.set_limit(None)
            run.arm.ask("save", path=str(file))
        except ArmError:
            return None
        return load_file(file)["output"].clone()


def _compared(output: torch.Tensor | None, reference: torch.Tensor) -> Record:
    if output is None:
        return {}
    error = ((output.float() - reference.float()).abs().max() / reference.float().abs().max()).item()
    return {"bit_identical": torch.equal(output, reference), "relative_error": error if error == error else None}
