"""When a load may start besides its space being free: what a plan's pacing means while it runs.

A lap is one time through the order of loads; lap 0 serves the pass that runs when the order begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.planning.plan import EAGER, LOCKSTEP, PLANNED


@dataclass(frozen=True, slots=True)
class Gates:
    """What each load of a schedule waits for, in terms of that schedule's calls.

    Attributes:
        after: for a planned load, the call that has to have ended, and of which pass: 0 the one that it serves, -1 the
            one before.
        layers: in lockstep, for each call that begins a layer, that layer's loads.
    """

    after: Mapping[int, tuple[int, int]]
    layers: Mapping[int, tuple[int, ...]]


class Pace:
    """`EAGER`: a load may start whenever its space is free, and the next ones may be read ahead."""

    is_driven = False
    """Whether it has to be told of calls."""

    def set(self, gates: Gates) -> None:
        """Go by the calls of another schedule of the same plan, from the next pass on."""

    def restart(self) -> None:
        """The order of loads begins anew, between two passes."""

    def free(self) -> None:
        """Calls depart from the order: hold nothing back until the next restart."""

    def ended(self, call: int | None) -> None:
        """A call of the schedule has ended; None: the pass."""

    def may_start(self, load: int, lap: int) -> bool:
        """Whether `load` of that lap may start."""
        return True

    def ahead(self, order: Sequence[int], then: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """What may be read into staging ahead of its turn: once, and then again and again."""
        return order, then


class PlannedPace(Pace):
    """`PLANNED`: nothing before the call that it is planned to follow has ended (FlashMem: which chunk moves when)."""

    is_driven = True

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self._passes = self._ended = 0
        self._is_free = False

    def set(self, gates: Gates) -> None:
        self._gates = gates

    def restart(self) -> None:
        self._passes = self._ended = 0
        self._is_free = False

    def free(self) -> None:
        self._is_free = True

    def ended(self, call: int | None) -> None:
        if call is None:
            self._passes, self._ended = self._passes + 1, 0
        else:
            self._ended = max(self._ended, call + 1)

    def may_start(self, load: int, lap: int) -> bool:
        after = self._gates.after.get(load)
        if after is None or self._is_free:
            return True
        call, in_pass = after
        return (lap + in_pass, call + 1) <= (self._passes, self._ended)

    def ahead(self, order: Sequence[int], then: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        return (), ()


class LockstepPace(Pace):
    """`LOCKSTEP`: while a layer computes, the next one is copied and the one after it read, and nothing else."""

    is_driven = True

    def __init__(self, gates: Gates) -> None:
        self.set(gates)
        self.restart()

    def set(self, gates: Gates) -> None:
        self._layers = list(gates.layers.values())
        self._layer_at = {call: index for index, call in enumerate(gates.layers)}
        self._layer_of = {load: index for index, loads in enumerate(self._layers) for load in loads}

    def restart(self) -> None:
        self._cycle = -1  # the layer that computes, counted on over passes
        self._is_free = False

    def free(self) -> None:
        self._is_free = True

    def begins_layer(self, call: int) -> bool:
        """Whether a cycle begins with `call`; then it has begun."""
        layer = self._layer_at.get(call)
        if layer is None or self._is_free:
            return False
        self._cycle += 1
        return True

    def may_start(self, load: int, lap: int) -> bool:
        layer = self._layer_of.get(load)
        return layer is None or self._is_free or lap * len(self._layers) + layer <= self._cycle + 1

    def ahead(self, order: Sequence[int], then: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        if self._is_free or not self._layers:
            return (), ()
        return self._layers[(self._cycle + 2) % len(self._layers)], ()


def make_pace(pacing: str, gates: Gates) -> Pace:
    """What the plan's `pacing` asks for, and its ebbs: what follows one must not come before it.

    Preloaded plans load nothing later that could be paced.
    """
    if pacing == PLANNED or (pacing == EAGER and gates.after):
        return PlannedPace(gates)
    return LockstepPace(gates) if pacing == LOCKSTEP else Pace()
