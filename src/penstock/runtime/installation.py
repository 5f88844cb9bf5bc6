"""One plan in memory: its arena, its pipeline, and the schedules that are bound to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from penstock.planning import Plan, Problem
from penstock.runtime.binding import BoundWeight
from penstock.runtime.devices.base import Device
from penstock.runtime.pipeline import Pipeline
from penstock.runtime.schedule import DividedModule, make_schedule
from penstock.runtime.storage import Storage


class Installation:
    """What a plan takes while it is in force.

    Attributes:
        cold, warm: the schedule of passes that may still load residents, and of later ones.
    """

    def __init__(
        self,
        plan: Plan,
        problem: Problem,
        *,
        weights: Sequence[BoundWeight],
        modules: dict[str, nn.Module],
        device: Device,
        open_storage: Callable[[], Storage],
        realign: frozenset[int],
    ) -> None:
        """Take the arena and start the pipeline, which owns the storage that it reads from."""
        self.plan, self.problem = plan, problem
        storage: Storage | None = None
        try:
            arena = device.allocate(plan.arena_nbytes)
            divided = DividedModule.of(problem, plan.cuts, weights, modules, realign)
            self.cold, self.warm = make_schedule(plan, divided, arena)
            storage = open_storage()
            self.pipeline = Pipeline(device, arena, storage, self.cold.planned)
        except BaseException:
            if storage is not None:
                storage.close()
            raise
        self._arena = arena

    def arena_nbytes(self) -> int:
        """How much of the arena is in memory."""
        return self._arena.resident_nbytes()

    def close(self) -> None:
        """End every transfer and thread; the memory goes with the last tensor over it."""
        self.pipeline.close()
        self._arena.close()
