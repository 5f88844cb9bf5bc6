"""Which weights are readable just now, and where they lie.

What a layer holds is bound to its place in the arena. What the schedule has no place for is mapped from the
checkpoint until the pass ends. Everything else is unreadable, but for residents that are loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from penstock.runtime.binding import BoundWeight, FileViews
from penstock.runtime.loads import PlannedLoad
from penstock.runtime.pipeline import READY, Pipeline, PlaceTakenError
from penstock.runtime.schedule import BoundCall, BoundLoad, Schedule
from penstock.runtime.slices import WeightSlice
from penstock.runtime.tide import Tide


class Holdings:
    """The weights of one streamed module as its layers hold them and let them go.

    Only the thread whose pass it is may hold, let go and provide.

    Args:
        weights: every streamed weight.
        views: the way out for weights that the schedule has no place for.

    Attributes:
        mapped_reads: how often a weight had to be mapped.
    """

    def __init__(self, weights: list[BoundWeight], views: FileViews) -> None:
        self._weights = weights
        self._by_parameter = {id(weight.parameter): weight for weight in weights}
        self._views = views
        self._mapped: dict[BoundWeight | WeightSlice, torch.Tensor] = {}
        self._looked_up: set[int] = set()
        self._early: list[int] = []
        self._loads: tuple[BoundLoad, ...] = ()
        self._planned: tuple[PlannedLoad, ...] = ()
        self.mapped_reads = 0

    def install(self, schedule: Schedule, pipeline: Pipeline) -> None:
        """Hold the loads of `schedule`, and of every other one of the same plan, in `pipeline`."""
        self._loads, self._planned, self._pipeline = schedule.loads, schedule.planned, pipeline
        self._opening, self._tide = schedule.opening, Tide(pipeline)

    def uninstall(self) -> None:
        """Know no loads, so that nothing keeps an arena in memory."""
        self._loads, self._planned = (), ()
        for name in ("_pipeline", "_tide"):
            self.__dict__.pop(name, None)

    # -- what layers hold --

    def begin_pass(self) -> None:
        """What a pass has before its first call: room for activations."""
        self._tide.turn(self._opening)

    def hold(self, call: BoundCall) -> BoundCall:
        """Bind what `call` needs; returns what it holds, which is less where places are taken."""
        if call.ebbs != self._tide.out:
            self._tide.turn(call.ebbs)
        loads, taken = self._loads, 0
        missing: tuple[int, ...] = ()
        try:
            for load in call.loads:
                bound = loads[load]
                try:
                    self._pipeline.hold(load)
                except PlaceTakenError:
                    missing = (*missing, load)
                    for weight in bound.weights:
                        self._map(weight)
                else:
                    bound.bind()
                taken += 1
        except BaseException:
            self.let_go(tuple(load for load in call.loads[:taken] if load not in missing), frozenset())
            raise
        if missing:
            call = BoundCall(tuple(load for load in call.loads if load not in missing), call.last_use, call.position)
        if self._early:
            self._drop_early(call.loads)
        return call

    def let_go(self, loads: tuple[int, ...], last_use: frozenset[int]) -> None:
        """What no other layer holds becomes unreadable; the space of `last_use` becomes free."""
        pipeline, all_planned = self._pipeline, self._planned
        for load in reversed(loads):
            if all_planned[load].resident:
                pipeline.held[load] -= 1
                continue
            if pipeline.held[load] == 1:
                self._unbind(load)
            pipeline.release(load, keep=load not in last_use)

    def _unbind(self, load: int) -> None:
        """The weights of `load` become unreadable, unless a layer around this one has them from elsewhere."""
        loads, held = self._loads, self._pipeline.held
        if not loads[load].data:
            return
        for other in loads[load].others:
            if held[other]:
                loads[other].bind()
                return
        for weight in loads[load].weights:
            mapped = self._mapped.get(weight)
            if mapped is None:
                weight.unbind()
            else:
                weight.bind(mapped)

    # -- weights that are read without their layer --

    def provide(self, parameter: nn.Parameter, coming: BoundCall | None) -> None:
        """Make an absent weight readable: early if it is among the loads of the `coming` call, else mapped."""
        weight = self._by_parameter.get(id(parameter))
        if weight is None or id(parameter) in self._looked_up:
            return
        if coming is not None and self._take_early(weight, coming):
            return
        self._map(weight)

    def _take_early(self, weight: BoundWeight, coming: BoundCall) -> bool:
        """A parent asks for a weight of the very next layer (its dtype, mostly): it is bound a moment early.

        Not one that is joined: others come with it, which may be other layers', and go with this one.
        """
        wanted = [load for load in coming.loads if self._loads[load].weights == (weight,)]
        if wanted:  # what ends with that layer's begin may lie in their place
            self._tide.turn(coming.ebbs)
        for taken, load in enumerate(wanted):
            try:
                self._pipeline.hold(load)
            except PlaceTakenError:
                self.let_go(tuple(wanted[:taken]), frozenset())
                return False
        for load in wanted:
            self._loads[load].bind()
        self._early.extend(wanted)
        return bool(wanted)

    def _drop_early(self, loads: Collection[int] | None = None) -> None:
        """Let go of those among `loads`, which their own layer holds now; of all if None."""
        early = [load for load in self._early if loads is None or load in loads]
        self._early = [load for load in self._early if load not in early]
        self.let_go(tuple(early), frozenset())

    def _map(self, weight: BoundWeight | WeightSlice) -> None:
        mapped = self._mapped.get(weight)
        if mapped is None:
            mapped = self._mapped[weight] = self._views.view(weight)
            self.mapped_reads += 1
        weight.bind(mapped)

    def _unmap(self) -> None:
        if self._mapped:
            mapped, self._mapped = self._mapped, {}
            for weight in mapped:
                weight.unbind()

    @contextmanager
    def looking_up(self, parameter: nn.Parameter) -> Iterator[None]:
        """While only rows of it are read, the parameter itself may stay absent."""
        self._looked_up.add(id(parameter))
        try:
            yield
        finally:
            self._looked_up.discard(id(parameter))

    # -- between passes --

    def end_pass(self) -> None:
        """What was mapped or bound early becomes unreadable, and what was lent comes back."""
        self._unmap()
        self._drop_early()
        self._tide.turn(())

    def recover(self) -> None:
        """After an interrupt, which may have come between any two steps: nobody holds anything."""
        pipeline = self._pipeline
        self._early = []
        self._tide.forget()
        for load, planned in enumerate(self._planned):
            pipeline.held[load] = 0
            if not planned.is_ebb and not (planned.resident and pipeline.states[load] == READY):
                for weight in self._loads[load].weights:
                    weight.unbind()

    def suspend(self) -> None:
        """Unbind everything, residents too."""
        self._unmap()
        for weight in (*self._weights, *(weight for load in self._loads for weight in load.weights)):
            weight.unbind()
