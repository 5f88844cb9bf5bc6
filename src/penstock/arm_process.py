"""The child's half of an arm: answers one line of JSON with another until its parent goes away. See `penstock.arms`."""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

import penstock
from penstock.arms import ArmSpec
from penstock.cgroup import MemoryGroup
from penstock.errors import PenstockError
from penstock.footprint import reset_peak, return_free_memory
from penstock.hub import load_skeleton
from penstock.models import load_class
from penstock.tensors import load_tensors, named_tensors, save_tensors

_WARM_UP_BUDGET = "64MiB"


class _ArmProcess:
    """One model, loaded one way, and the pass that is timed."""

    def __init__(self, spec: ArmSpec, group: MemoryGroup | None) -> None:
        cls = load_class(spec.library, spec.class_name)
        inputs = [load_tensors(Path(file)) for file in spec.inputs]
        warm_up(cls, spec.folder)
        self._baseline_nbytes = enter(group)
        self._group = group
        started = time.perf_counter()
        self._module = load(cls, spec)
        self.load_seconds = time.perf_counter() - started
        self._inputs = inputs
        self.outputs: dict[str, torch.Tensor] = {}
        self.run()
        self.first_seconds = time.perf_counter() - started
        self._budgeted = spec.budget_nbytes is not None

    def run(self) -> float:
        """One pass, a call for each set of inputs; its seconds, without what is done with the outputs."""
        self.outputs, seconds = {}, 0.0
        for number, inputs in enumerate(self._inputs):
            started = time.perf_counter()
            with torch.inference_mode():
                output = self._module(**inputs)
            seconds += time.perf_counter() - started
            prefix = f"{number}." if len(self._inputs) > 1 else ""
            self.outputs |= {f"{prefix}{name}": tensor for name, tensor in named_tensors(output).items()}
        return seconds

    def report(self) -> dict[str, Any]:
        """Peak over the baseline (by `VmHWM`, for want of a cgroup), the outputs' hash and the stream's counters."""
        peak_nbytes = _status_nbytes("VmHWM") - self._baseline_nbytes
        stats: dict[str, float] = {}
        if self._budgeted:
            stream = penstock.inspect(self._module)
            measured = stream.stats
            names = ("bytes_read", "stall_seconds", "demand_loads", "peak_nbytes", "passes")
            stats = {name: getattr(measured, name) for name in names}
            stats["sliced_weights"] = len(stream.plan.cuts)
        return {"peak_nbytes": peak_nbytes, "outputs_sha256": outputs_sha256(self.outputs), "stats": stats}


def load(cls: Any, spec: ArmSpec) -> torch.nn.Module:
    """The model in evaluation mode, resident or streamed as `spec` says."""
    if spec.budget_nbytes is None:
        module = cls.from_pretrained(spec.folder, use_safetensors=True)
    else:
        module = penstock.from_pretrained(
            cls,
            spec.folder,
            budget=spec.budget_nbytes,
            strategy=spec.strategy,
            max_overhead=spec.max_overhead,
            least_memory=spec.least_memory,
            exact=spec.exact,
        )
    evaluating: torch.nn.Module = module.eval()
    return evaluating


def warm_up(cls: Any, folder: str) -> None:
    """Lets libraries, kernels and penstock do what they do once in a process: imports, threads, buffers, caches."""
    importlib.import_module("torch._subclasses.fake_tensor")
    load_skeleton(cls, folder)
    small = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(3)])
    with torch.inference_mode():
        rows = torch.ones(64, 512)
        torch.nn.functional.gelu(rows).softmax(-1)
        torch.nn.functional.scaled_dot_product_attention(rows[None, None], rows[None, None], rows[None, None])
        torch.nn.functional.layer_norm(rows, (512,))
        torch.nn.Conv2d(3, 8, 3)(torch.ones(1, 3, 8, 8))
        penstock.stream(small, budget=_WARM_UP_BUDGET, example=(rows,))(rows)
        penstock.restore(small)


def enter(group: MemoryGroup | None) -> int:
    """Gives back what is free, resets the peak and enters `group`; the resident set now, in bytes."""
    gc.collect()
    return_free_memory()
    if group is not None:
        group.enter()
    else:
        reset_peak()  # where that is not allowed, the peak counts what was used before, too
    return _status_nbytes("VmRSS")


def outputs_sha256(outputs: dict[str, torch.Tensor]) -> str:
    """A hash over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(outputs.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _status_nbytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _serve(read: Callable[[], str], write: TextIO) -> None:
    first = json.loads(read())
    group = first["group"]
    where = None if group is None else MemoryGroup(Path(group["path"]), group["version"])
    arm = _ArmProcess(ArmSpec(**{**first["spec"], "inputs": tuple(first["spec"]["inputs"])}), where)
    reply: dict[str, Any] = {"load_seconds": arm.load_seconds, "first_seconds": arm.first_seconds}
    while True:
        print(json.dumps(reply), file=write, flush=True)
        line = read()
        if not line:
            return
        question = json.loads(line)
        if question["do"] == "pass":
            reply = {"seconds": arm.run()}
        elif question["do"] == "save":
            save_tensors(arm.outputs, Path(question["path"]))
            reply = {}
        else:
            reply = arm.report()


def main() -> None:
    """Serves the parent on the standard streams; what anything else prints goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    with os.fdopen(os.dup(1), "w") as write:
        os.dup2(2, 1)
        try:
            _serve(sys.stdin.readline, write)
        except (PenstockError, OSError, MemoryError) as error:
            print(json.dumps({"error": str(error) or type(error).__name__}), file=write, flush=True)
        except (RuntimeError, ValueError, TypeError, LookupError) as error:  # as models refuse inputs
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(json.dumps({"error": f"it refuses these inputs: {first_line}"}), file=write, flush=True)


if __name__ == "__main__":
    main()
