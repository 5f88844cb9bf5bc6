"""One arm of the training benchmark: `python -m benchmarks.training_child` answers lines of JSON with lines of JSON.

Its baseline is a started interpreter that has trained a tiny model the same way: what is charged to its cgroup is the
model's, its gradients', its optimizer's and what an iteration takes.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

import penstock
from benchmarks.serving import Verbs, serve
from benchmarks.training_models import Trained, find
from benchmarks.training_rivals import Saving, checkpointed
from penstock.cgroup import MemoryGroup
from penstock.footprint import return_free_memory


class Arm:
    """A model that is trained in one way, a few steps at a time."""

    def __init__(
        self, trained: Trained, way: str, *, budget_nbytes: int, parameters: bool, group: dict[str, Any]
    ) -> None:
        self._trained = trained
        _warm_up(way)
        trained.make()  # for what its library imports
        return_free_memory()
        self._group = MemoryGroup(Path(group["path"]), group["version"])
        self._group.enter()
        torch.manual_seed(0)
        self._model = trained.make().train()
        self._optimizer = trained.optimizer(self._model.parameters())
        self._chance = torch.Generator().manual_seed(1)
        self._stack = contextlib.ExitStack()
        self._swap: penstock.AutoSwap | None = None
        self._saving: Saving | None = None
        if way == "saving":
            self._saving = Saving(self._model)
            self._stack.enter_context(self._saving.hooks())
        elif way == "checkpoint":
            checkpointed(self._model)
        elif way == "autoswap":
            block = penstock.autoswap(self._model, self._optimizer, budget=budget_nbytes, parameters=parameters)
            self._swap = self._stack.enter_context(block)

    def steps(self, count: int) -> dict[str, Any]:
        """Seconds and losses of so many iterations, and the most memory that they took."""
        self._group.reset_peak()
        seconds, losses = [], []
        for _ in range(count):
            x, labels = self._trained.batch(self._trained.rows, self._chance)
            if self._saving is not None:
                self._saving.begin()
            began = perf_counter()
            self._optimizer.zero_grad()
            loss = self._trained.loss(self._model, x, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            seconds.append(perf_counter() - began)
            losses.append(float(loss.detach()))
        answer = {"seconds": seconds, "losses": losses, "peak_nbytes": self._group.peak_nbytes()}
        if self._swap is not None and self._swap.plan is not None:
            plan, stats = self._swap.plan, self._swap.stats
            answer |= {
                "planned": {
                    "peak_nbytes": plan.peak_nbytes,
                    "full_peak_nbytes": plan.full_peak_nbytes,
                    "overhead_nbytes": self._swap.overhead_nbytes,
                    "swapped_nbytes": plan.swapped_nbytes,
                    "predicted_seconds": plan.predicted_seconds,
                    "compute_seconds": plan.compute_seconds,
                    "bound_seconds": plan.bound_seconds,
                    "method": plan.method,
                },
                "stats": asdict(stats),
                "pool": asdict(self._swap.pool_stats) if self._swap.pool_stats is not None else None,
            }
        return answer

    def digest(self) -> dict[str, Any]:
        """Of all weights and gradients; ends the arm."""
        self._stack.close()  # some may be away
        found = hashlib.sha256()
        for parameter in self._model.parameters():
            for tensor in (parameter.detach(), parameter.grad):
                if tensor is not None:
                    found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        return {"digest": found.hexdigest()}


def _warm_up(way: str) -> None:
    """Threads, kernels and imports are nobody's. Plain training is left alone: autoswap sets the allocator's limits."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(8))
    model(torch.zeros(2, 3, 16, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with penstock.autoswap(model, optimizer, budget="1GiB") if way == "autoswap" else contextlib.nullcontext():
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.zeros(2, 3, 16, 16)).sum().backward()
            optimizer.step()


def _begin(start: dict[str, Any]) -> Verbs:
    torch.set_num_threads(2)
    arm = Arm(find(start.pop("model")), start.pop("way"), **start)
    return {"steps": arm.steps, "digest": arm.digest}


if __name__ == "__main__":
    serve(_begin)
