"""Follows a swap plan through iterations, event by event; what departs from the record stays in memory."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from penstock.errors import StorageError
from penstock.planning.swap_plan import SwapPlan
from penstock.planning.swap_schedule import by_segment, gone_by
from penstock.training.entry import Entry, Handle, Kept
from penstock.training.mover import Mover, Place
from penstock.training.states import State
from penstock.training.swapfile import room_nbytes
from penstock.training.tape import SAVED, STEP_BEGINS, TAKEN, Event

logger = logging.getLogger("penstock")


@dataclass(slots=True)
class SwapStats:
    """What happened so far.

    Attributes:
        iterations: that followed the plan from begin to end.
        departed: that did not.
        swapped_nbytes: bytes that were away once.
        room_seconds: waited for writes, so that there was room.
        late_seconds: waited for reads.
    """

    iterations: int = 0
    departed: int = 0
    swapped_nbytes: int = 0
    room_seconds: float = 0.0
    late_seconds: float = 0.0


class Swapper:
    """The executing side of a swap plan.

    Attributes:
        futile: storages that were given up and stayed in memory, because somebody else has them, a local variable say.

    Args:
        events: which begin the segments of an iteration.
        plan: for them.
        mover: what moves storages.
        places: for each swap, where it comes back to.
        stats: to be kept.
        states: optimizer state, by its number as a storage.
        seek: told which segment begins.
    """

    def __init__(
        self,
        events: Sequence[Event],
        plan: SwapPlan,
        mover: Mover,
        places: Sequence[Place],
        stats: SwapStats,
        *,
        states: Mapping[int, torch.Tensor],
        seek: Callable[[int], None] = lambda segment: None,
    ) -> None:
        self._events, self.plan, self.stats = events, plan, stats
        self._mover, self._places, self._seek = mover, places, seek
        self._next = 0  # event
        self._departed = False
        self._is_broken = False
        self._first_saves = {swap.storage: index for index, swap in enumerate(plan.swaps)}
        self._states = {
            index: State(states[swap.storage]) for index, swap in enumerate(plan.swaps) if swap.storage in states
        }
        self._leaving = by_segment([swap.leaves for swap in plan.swaps])
        self._gone_at = by_segment([segment + 1 for segment in gone_by(plan)])
        self.futile: set[int] = set()
        self._reading = by_segment([swap.reads_at for swap in plan.swaps])
        self._offsets = np.cumsum([0, *(room_nbytes(swap.nbytes) for swap in plan.swaps)])
        self._entries: list[weakref.ref[Entry] | None] = [None] * len(plan.swaps)  # what graphs do not hold is gone
        self._by_storage: dict[int, Entry] = {}
        self._unsettled: list[Entry] = []
        self._last: list[weakref.ref[Entry] | None] = [None] * len(plan.swaps)  # whose bytes are in the file

    # -- what autograd and optimizers tell --

    def saved(self, tensor: torch.Tensor) -> Kept:
        """Autograd saves a tensor: what it is to keep in its place."""
        storage = tensor.untyped_storage()
        index = self._first_saves.get(self._next)
        is_followed = self.event(Event(SAVED, storage.nbytes()))
        key = storage._cdata
        if is_followed and index is not None and not self._is_broken:
            entry = self._by_storage[key] = Entry(storage, self._mover, int(self._offsets[index]), self._places[index])
            self._entries[index] = weakref.ref(entry)
        else:
            found = self._by_storage.get(key)
            if found is None:
                return Kept(tensor)
            entry = found
        return Handle(entry, tensor)

    def taken(self, kept: Kept) -> torch.Tensor:
        """Autograd takes back what `saved` gave it."""
        self.event(Event(TAKEN, kept.nbytes))
        tensor, seconds = kept.take()
        self.stats.late_seconds += seconds
        return tensor

    def event(self, event: Event) -> bool:
        """One more event; whether it is the next of the record."""
        if event.kind == STEP_BEGINS:
            self.have_states()
        if self._departed or event != self._events[self._next]:
            self._depart()
            if event == self._events[-1]:
                self._begin_anew()
            return False
        segment, self._next = self._next, self._next + 1
        self._seek(segment)
        self._act(segment)
        if self._next == len(self._events):
            self.stats.iterations += 1
            self._begin_anew()
        return True

    # -- the plan --

    def _act(self, segment: int) -> None:
        if segment == 0 and not self._is_broken:
            for index, state in self._states.items():
                state.present()
                storage = state.tensor.untyped_storage()
                anew = Entry(storage, self._mover, int(self._offsets[index]), self._places[index])
                state.enter(anew)
                self._entries[index] = weakref.ref(anew)
        for index in self._leaving.get(segment, ()):
            entry = self._entry(index)
            if entry is not None:
                self._by_storage = {key: e for key, e in self._by_storage.items() if e is not entry}
                last = self._last[index]
                if last is not None and (kept := last()) is not None:  # a graph of an earlier iteration still lives
                    kept.present()
                self._last[index] = weakref.ref(entry)
                entry.leave()
                self._unsettled.append(entry)
                self.stats.swapped_nbytes += self.plan.swaps[index].nbytes
        if self._unsettled:
            self._settle(segment)
        for index in self._gone_at.get(segment, ()):
            entry = self._entry(index)
            if entry is not None and entry.is_held_elsewhere:
                self.futile.add(self.plan.swaps[index].storage)
        for index in self._reading.get(segment, ()):
            entry = self._entry(index)
            if entry is not None:
                entry.begin_to_return()

    def _entry(self, index: int) -> Entry | None:
        reference = self._entries[index]
        return reference() if reference is not None else None

    def _settle(self, segment: int) -> None:
        gone = self.plan.gone[segment]
        needed = {id(self._entry(index)) for index in range(gone)}
        left: list[Entry] = []
        for entry in self._unsettled:
            began = perf_counter()
            try:
                if not entry.settle(wait=id(entry) in needed):
                    left.append(entry)
            except StorageError as error:
                self._break(error)
            self.stats.room_seconds += perf_counter() - began if id(entry) in needed else 0.0
        self._unsettled = left

    def _break(self, error: StorageError) -> None:
        """Nothing leaves memory any more."""
        if not self._is_broken:
            logger.warning("%s: training goes on with everything in memory, beyond its budget", error)
        self._is_broken = True

    def _depart(self) -> None:
        if self._departed:
            return
        self._departed = True
        self.stats.departed += 1
        self._stay()

    def _stay(self) -> None:
        for index in range(len(self._entries)):
            if (entry := self._entry(index)) is not None:
                entry.stay()

    def have_states(self) -> None:
        """Have optimizer state in memory, for as long as the iteration takes.

        Raises:
            StorageError: it could not be read.
        """
        for state in self._states.values():
            self.stats.late_seconds += state.present()

    def forget_states(self) -> None:
        """The optimizer has other ones now, which stay."""
        self._states.clear()

    def bring_back(self) -> None:
        """Have in memory whatever somebody may still ask for."""
        self._stay()
        failures: list[StorageError] = []
        entries = [reference() for reference in self._last if reference is not None]
        for entry in entries:
            if entry is not None:
                with contextlib.suppress(StorageError):  # what could not be written is in memory
                    entry.settle(wait=True)
        for present in (
            *(state.present for state in self._states.values()),
            *(entry.present for entry in entries if entry is not None),
        ):
            try:
                present()
            except StorageError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _begin_anew(self) -> None:
        self._next, self._departed = 0, False
        self._entries = [None] * len(self._entries)
        self._by_storage.clear()
        self._unsettled.clear()
