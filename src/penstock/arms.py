"""Comparing ways to run one model: each, an *arm*, is a child process of its own, and passes alternate between them.

Only so is a peak the arm's own, and only so does a slow moment of the machine hit both. The child imports everything,
loads the model's skeleton once so that nothing is left to import, trims its heap and enters a memory cgroup of its own;
what is charged from then on is its peak over its baseline. Where no cgroup can be made it is the growth of its resident
set (`VmHWM`).

Parent and child speak lines of JSON over the child's standard streams; the child's half is `penstock.arm_process`.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penstock.budget import format_size
from penstock.cgroup import CgroupUnavailableError, MemoryGroup, memory_group
from penstock.errors import PenstockError

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
WARM_UP_PASSES = 2


class ArmError(PenstockError):
    """An arm refused or died; the message is the child's own."""


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """One way to run a model.

    Attributes:
        folder: the model, a folder in the Hub's layout.
        library: `"transformers"` or `"diffusers"`.
        class_name: its class there.
        inputs: safetensors files with a forward's arguments by name; a pass calls the model with each in turn.
        budget_nbytes: streamed within so much; None: resident, loaded by the library itself.
        strategy, max_overhead, least_memory, exact: how to plan.
    """

    folder: str
    library: str
    class_name: str
    inputs: tuple[str, ...]
    budget_nbytes: int | None = None
    strategy: str = "auto"
    max_overhead: float | None = None
    least_memory: bool = False
    exact: bool = False


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What one arm did.

    Attributes:
        seconds: of each pass, warm-up excluded.
        load_seconds: loading the model, imports excluded.
        first_seconds: from the end of the imports to the first output.
        peak_nbytes: the most memory over the baseline, warm-up included.
        peak_source: `"cgroup"` (page cache and kernel memory included) or `"VmHWM"`.
        outputs_sha256: over names, dtypes, shapes and bytes of the last pass's outputs.
        stats: the stream's own counters, and its plan's `sliced_weights`; empty for a resident arm.
    """

    seconds: tuple[float, ...]
    load_seconds: float
    first_seconds: float
    peak_nbytes: int
    peak_source: str
    outputs_sha256: str
    stats: dict[str, float]

    @property
    def median_seconds(self) -> float:
        """The median of the passes."""
        return statistics.median(self.seconds)


class Arm:
    """The parent's half of one running arm."""

    def __init__(self, spec: ArmSpec, group: MemoryGroup | None) -> None:
        self.spec = spec
        self._group = group
        self._seconds: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "penstock.arm_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("subprocess.PIPE gave no pipe")
        self._questions, self._answers = self._process.stdin, self._process.stdout
        where = {"path": str(group.path), "version": group.version} if group is not None else None
        try:
            self._first = self._ask({"spec": asdict(spec), "group": where})
        except BaseException:
            self.close()
            raise

    def run(self, *, counted: bool = True) -> None:
        """One pass."""
        seconds = self._ask({"do": "pass"})["seconds"]
        if counted:
            self._seconds.append(seconds)

    def forget(self) -> None:
        """Leaves the passes so far out of the result."""
        self._seconds.clear()

    def save_outputs(self, path: Path) -> None:
        """Writes the last pass's outputs to a safetensors file."""
        self._ask({"do": "save", "path": str(path)})

    def result(self) -> ArmResult:
        """What it did so far."""
        report = self._ask({"do": "report"})
        return ArmResult(
            seconds=tuple(self._seconds),
            load_seconds=self._first["load_seconds"],
            first_seconds=self._first["first_seconds"],
            peak_nbytes=report["peak_nbytes"] if self._group is None else self._group.peak_nbytes(),
            peak_source="VmHWM" if self._group is None else "cgroup",
            outputs_sha256=report["outputs_sha256"],
            stats=report["stats"],
        )

    def kill(self) -> None:
        """Ends the child at once."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends the child and lets go of everything."""
        self.kill()
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(OSError):  # a broken pipe with something left to flush
                pipe.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            self._questions.write(json.dumps(question) + "\n")
            self._questions.flush()
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ArmError(f"{self._name}: its process ended with {self._process.wait()}")
        reply: dict[str, Any] = json.loads(answer)
        if "error" in reply:
            raise ArmError(f"{self._name}: {reply['error']}")
        return reply

    @property
    def _name(self) -> str:
        nbytes = self.spec.budget_nbytes
        return f"{self.spec.class_name} {'resident' if nbytes is None else f'inside {format_size(nbytes)}'}"


@contextlib.contextmanager
def open_arms(specs: Sequence[ArmSpec]) -> Iterator[list[Arm]]:
    """Starts the arms, each loaded and with its first pass done; ends them with the block.

    Raises:
        ArmError: an arm's model cannot be loaded or run.
    """
    with contextlib.ExitStack() as stack:
        arms = []
        for spec in specs:
            try:
                group = stack.enter_context(memory_group())
            except CgroupUnavailableError:
                group = None
            arms.append(Arm(spec, group))
            stack.callback(arms[-1].close)
        yield arms


def alternate(arms: Sequence[Arm], rounds: int, progress: Progress | None = None) -> list[ArmResult]:
    """Lets the arms run in turn, `rounds` counted passes each after the warm-up, and returns what each did."""
    for arm in arms:
        arm.forget()
    total = rounds + WARM_UP_PASSES - 1  # the first pass of each was made when it was opened
    for number in range(total):
        for arm in arms:
            arm.run(counted=number >= WARM_UP_PASSES - 1)
        if progress is not None:
            progress(number + 1, total)
    return [arm.result() for arm in arms]
