"""One plan in memory: its arena, its pipeline, and the schedules that are bound to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from penstock.planning import Plan, Problem
from penstock.runtime.binding import BoundWeight
from penstock.runtime.devices.base import Device
from penstock.runtime.events import EventLog
from penstock.runtime.pacing import make_pace
from penstock.runtime.pipeline import Pipeline
from penstock.runtime.scheduling import DividedModule, make_schedule
from penstock.runtime.storage import Storage

LENT = "(lent to activations)"
"""What is noted where an ebb is."""


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
            divided = DividedModule.of(problem, plan, weights, modules, realign)
            self.cold, self.warm = make_schedule(plan, divided, arena)
            storage = open_storage()
            staging = device.allocate(plan.staging_nbytes) if plan.staging_nbytes else None
            pace = make_pace(plan.pacing, self.cold.gates)
            self._arenas = [arena, staging] if staging is not None else [arena]
            self.pipeline = Pipeline(device, arena, storage, self.cold.planned, staging=staging, pace=pace)
        except BaseException:
            if storage is not None:
                storage.close()
            raise

    def arena_nbytes(self) -> int:
        """How much of arena and staging memory is in memory."""
        return sum(arena.resident_nbytes() for arena in self._arenas)

    def record(self, events: EventLog | None) -> None:
        """Note from now on in `events` what happens to loads; if None, nowhere."""
        names = [load.name for load in self.cold.loads]
        self.pipeline.record(events, names + [LENT] * (len(self.cold.planned) - len(names)))

    def close(self) -> None:
        """End every transfer and thread; the memory goes with the last tensor over it."""
        self.pipeline.disown()  # an interrupt may have kept the lock, and readers that end wait for it
        self.pipeline.close()
        for arena in self._arenas:
            arena.close()
