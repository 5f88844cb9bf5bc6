"""The child's half of an arm: `python -m benchmarks.child` answers lines of JSON with lines of JSON. See `arm.py`.

Its baseline is a started interpreter with everything imported and nothing loaded. So that no code page, thread pool or
lazy import of the libraries is charged to the model, it first runs the model's tiny twin the same way, gives back what
that took, and only then enters its memory cgroup: what is charged there is what lies over the baseline.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import save_file
from torch import nn

import penstock
from benchmarks import storage
from benchmarks.models import Model, find
from benchmarks.ways import WAYS, Way
from penstock.cgroup import MemoryGroup

AMPLE_NBYTES = 2**30
IDLE_SECONDS = 0.04
MAX_IDLE_WAIT_SECONDS = 5.0


class Session:
    """One model, run one way."""

    def __init__(self, way: Way, model: Model, budget_nbytes: int) -> None:
        self._way, self._model, self._budget_nbytes = way, model, budget_nbytes
        self._inputs = model.inputs()
        self._module: nn.Module | None = None
        self._output: Any = None
        self._probed = 0

    def warm_up(self) -> None:
        """The tiny twin, loaded and run, and forgotten."""
        tiny = Session(self._way, self._model.small(), AMPLE_NBYTES)
        tiny.load()
        tiny.run(lead=1)
        tiny.close()

    def import_everything(self) -> None:
        """Loads the tiny twin as its library does, for the imports that it puts off until then, and runs nothing."""
        WAYS["plain"].load(self._model.small(), 0)

    def load(self) -> dict[str, Any]:
        """Loads the model and runs the first pass."""
        began = time.perf_counter()
        self._module = self._way.load(self._model, self._budget_nbytes)
        loaded = time.perf_counter()
        self._forward()
        answer = {"load_seconds": loaded - began, "first_seconds": time.perf_counter() - began, **self._planned()}
        _wait_until_idle()
        return answer

    def run(self, lead: int) -> dict[str, Any]:
        """`lead` untimed passes and, right after them, a timed one; then waits for what is read ahead.

        The lead makes it a pass among others: after a pause, Penstock would find its arena full of what it needs.
        `bytes_read` is what was read while the timed pass ran, `bytes_streamed` what a pass streams on average.
        """
        before = self._bytes_read()
        for _ in range(lead):
            self._forward()
        at_begin, began = self._bytes_read(), time.perf_counter()
        self._forward()
        seconds, at_end = time.perf_counter() - began, self._bytes_read()
        stall = self._stream().stats.pass_stall_seconds if self._streams else 0.0
        _wait_until_idle()
        return {
            "seconds": seconds,
            "stall_seconds": stall,
            "bytes_read": at_end - at_begin,
            "bytes_streamed": (self._bytes_read() - before) / (lead + 1),
        }

    def bandwidth(self) -> dict[str, Any]:
        """What storage gives into this stream's own memory, between passes."""
        probe = storage.BandwidthProbe.in_place(self._stream(), self._probed)
        rate = probe.measure()
        self._probed = probe.position
        return {"bytes_per_second": rate}

    def drop(self) -> dict[str, Any]:
        """Takes what the arm reads out of the page cache."""
        storage.drop(self._way.folder(self._model))
        return {}

    def save(self, path: str) -> dict[str, Any]:
        """Writes the last output, for comparison."""
        save_file({"output": first_tensor(self._output).contiguous()}, path)
        return {}

    def close(self) -> None:
        """Forgets the model and gives its memory back to the system."""
        if self._streams:
            self._stream().close()
        self._module = self._output = None
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)

    @property
    def _streams(self) -> bool:
        return self._module is not None and self._way is WAYS["penstock"]

    def _stream(self) -> penstock.Stream:
        return penstock.inspect(self._loaded)

    @property
    def _loaded(self) -> nn.Module:
        if self._module is None:
            raise RuntimeError("nothing is loaded")
        return self._module

    def _forward(self) -> None:
        self._output = None
        with torch.inference_mode():
            self._output = self._loaded(**self._inputs)

    def _bytes_read(self) -> int:
        return self._stream().stats.bytes_read if self._streams else 0

    def _planned(self) -> dict[str, Any]:
        """Bytes that the plan's first pass loads, and those of tables that it reads by rows."""
        if not self._streams:
            return {}
        handle = self._stream()
        plan = handle.plan
        nbytes = {weight.name: weight.source.nbytes for weight in handle.weights}
        sizes = [nbytes[name] for name in plan.weight_names]
        loaded = {slot.weight for slot in plan.resident} | {load.weight for load in plan.loads}
        return {
            "planned_nbytes": sum(sizes[index] for index in loaded),
            "row_tables_nbytes": sum(sizes[index] for index in plan.rows),
            "predicted_seconds": plan.prediction.warm_seconds,
            "demand_loads": handle.stats.demand_loads,
        }


def first_tensor(output: Any) -> torch.Tensor:
    """The output, or the first tensor of several."""
    return output if isinstance(output, torch.Tensor) else first_tensor(output[0])


def _wait_until_idle() -> None:
    """Returns when this process has read nothing from storage for a while."""
    deadline = time.perf_counter() + MAX_IDLE_WAIT_SECONDS
    before = -1
    while (now := _read_nbytes()) != before and time.perf_counter() < deadline:
        before = now
        time.sleep(IDLE_SECONDS)


def _read_nbytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def quiet() -> None:
    """No progress bars and no advice from transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _serve(read: Callable[[], str], write: TextIO) -> None:
    start = json.loads(read())
    session = Session(WAYS[start["way"]], find(start["model"], tiny=start["tiny"]), start["budget_nbytes"])
    if start["warm_up"] == "pass":
        session.warm_up()
    else:
        session.import_everything()
    if start["group"] is not None:
        MemoryGroup(Path(start["group"]["path"]), start["group"]["version"]).enter()
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
        "load": session.load,
        "run": session.run,
        "bandwidth": session.bandwidth,
        "drop": session.drop,
        "save": session.save,
    }
    answer: dict[str, Any] = {}
    while True:
        print(json.dumps(answer), file=write, flush=True)
        line = read()
        if not line:
            return
        question = json.loads(line)
        verb = question.pop("do")
        answer = verbs[verb](**question)


def main() -> None:
    """Serves the parent on the standard streams; what anything else prints goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w") as write:
        os.dup2(2, 1)
        try:
            quiet()
            _serve(sys.stdin.readline, write)
        except Exception as error:  # the parent records it, whatever it is
            traceback.print_exc()
            needed = getattr(error, "needed_nbytes", None)
            reason = f"{type(error).__name__}: {error}"
            print(json.dumps({"error": reason, "needed_nbytes": needed}), file=write, flush=True)


if __name__ == "__main__":
    main()
