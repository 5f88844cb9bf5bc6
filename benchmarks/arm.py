"""The parent's half of an arm: a child process of its own, in a memory cgroup of its own, that runs when told to."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.model import Model, root
from benchmarks.ways import WAYS
from penstock.cgroup import CgroupUnavailableError, MemoryGroup, memory_group

REPOSITORY = Path(__file__).parents[1]
START_SECONDS, ANSWER_SECONDS = 300.0, 300.0


class ArmError(Exception):
    """An arm refused, died or did not answer.

    Attributes:
        status: `"infeasible"`, `"killed"` (by the kernel, at its cap), `"timeout"` or `"error"`.
        needed_nbytes: the smallest budget that would do, if it is infeasible.
    """

    def __init__(self, status: str, reason: str, needed_nbytes: int | None = None) -> None:
        super().__init__(f"{status}: {reason}")
        self.status, self.reason, self.needed_nbytes = status, reason, needed_nbytes


class Child:
    """A process that answers lines of JSON with lines of JSON. It computes only while `wait` waits for it."""

    def __init__(self, module: str, **environment: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # `close` closes it
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=REPOSITORY,
            env=child_environment() | environment,
            text=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("subprocess.PIPE gave no pipe")
        self._questions, self._answers = self._process.stdin, self._process.stdout

    def wait(self, seconds: float = START_SECONDS) -> dict[str, Any]:
        """The child's next answer.

        Raises:
            ArmError: it refused, died or gave none.
        """
        if not select.select([self._answers], [], [], seconds)[0]:
            self._process.kill()
            raise ArmError("timeout", f"no answer in {seconds:g} s")
        line = self._answers.readline()
        if not line:
            raise self._obituary()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            needed = answer["needed_nbytes"]
            raise ArmError("infeasible" if needed is not None else "error", answer["error"], needed)
        return answer

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Has the child do something, and waits for it.

        Raises:
            ArmError: as `wait`.
        """
        self.send({"do": verb, **arguments})
        return self.wait(ANSWER_SECONDS)

    def close(self) -> None:
        """Ends the child."""
        self._process.kill()
        self._process.wait()
        for stream in (self._questions, self._answers, self._log):
            with contextlib.suppress(OSError):
                stream.close()

    def log_tail(self) -> str:
        """The last line that the child wrote to standard error."""
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else ""

    def send(self, question: dict[str, Any]) -> None:
        """Tells the child something without waiting for its answer."""
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._questions.write(json.dumps(question) + "\n")
            self._questions.flush()

    def _obituary(self) -> ArmError:
        code = self._process.wait()
        if code == -9:
            return ArmError("killed", "killed by the kernel: it needed more memory than its cap")
        return ArmError("error", f"ended with {code}: {self.log_tail()}")


class Arm(Child):
    """One running arm of a model's passes."""

    def __init__(
        self, name: str, model: Model, budget_nbytes: int, group: MemoryGroup | None, *, is_capped: bool
    ) -> None:
        self.name, self.way, self.model = name, WAYS[name], model
        self.group, self.budget_nbytes = group, budget_nbytes
        self.is_capped = is_capped
        super().__init__("benchmarks.child")

    def start(self, *, warm_up: str = "pass") -> None:
        """Tells the child what it is to be; it gets ready while others do.

        Args:
            warm_up: `"pass"`: it loads and runs the tiny twin in its own way; `"imports"`: its library loads the tiny
                twin, and nothing is run.
        """
        where = {"path": str(self.group.path), "version": self.group.version} if self.group is not None else None
        self.send(
            {
                "way": self.name,
                "model": self.model.name,
                "tiny": self.model.is_tiny,
                "batch": self.model.batch,
                "budget_nbytes": self.budget_nbytes,
                "group": where,
                "warm_up": warm_up,
            }
        )


def child_environment() -> dict[str, str]:
    """Traces, plans and measurements are kept apart from the user's own, and begin empty with each run."""
    return {
        **os.environ,
        "PENSTOCK_BENCHMARKS": str(root()),
        "PENSTOCK_CACHE": str(state_folder()),
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }


def state_folder() -> Path:
    """What Penstock keeps between the processes of one run."""
    return root() / "state"


@contextlib.contextmanager
def open_arm(name: str, model: Model, budget_nbytes: int, *, capped: bool = True) -> Iterator[Arm]:
    """An arm in a cgroup of its own, capped at its budget if its kind is; none where no cgroup can be made."""
    with contextlib.ExitStack() as stack:
        is_capped = capped and WAYS[name].is_capped
        try:
            group = stack.enter_context(memory_group(budget_nbytes if is_capped else None))
        except CgroupUnavailableError:
            group = None
        arm = Arm(name, model, budget_nbytes, group, is_capped=is_capped and group is not None)
        stack.callback(arm.close)
        yield arm


def limit_hits(group: MemoryGroup) -> int | None:
    """How often the group reached its cap and had to give something up; None where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError):
        if group.version == 1:
            return int((group.path / "memory.failcnt").read_text())
        events = dict(line.split() for line in (group.path / "memory.events").read_text().splitlines())
        return int(events["max"])
    return None
