"""Follows a swap plan through iterations, event by event; what departs from the record stays in memory."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from time import perf_counter

import torch

from penstock.errors import StorageError
from penstock.planning.swap_plan import SwapPlan
from penstock.training.again import EntryAgain
from penstock.training.entry import Entry, Handle, Kept
from penstock.training.movables import Movables, bring_all
from penstock.training.mover import Mover, Place
from penstock.training.recompute import Recipe
from penstock.training.swap_stats import SegmentClock, SwapStats
from penstock.training.swapfile import room_nbytes
from penstock.training.tape import SAVED, STEP_PART, TAKEN, Event
from penstock.training.timetable import Timetable

logger = logging.getLogger("penstock")


class Swapper:
    """The executing side of a swap plan.

    Args:
        events: which begin the segments of an iteration.
        plan: for them.
        mover: what moves storages.
        places: for each swap, where it comes back to.
        stats: to be kept.
        movables: what others than autograd hold, which may be away already.
        recipes: for what is computed again, by its number as a storage.
        seek: told which segment begins.

    Attributes:
        futile: storages that the last iteration gave up, and that stayed in memory, because somebody else has them, a
            local variable say.
        clock: of segments.
        has_asked: whether somebody asked between two iterations for what is away, and has it until the next one begins.
    """

    def __init__(
        self,
        events: Sequence[Event],
        plan: SwapPlan,
        mover: Mover,
        places: Sequence[Place],
        stats: SwapStats,
        *,
        movables: Movables,
        recipes: Mapping[int, Recipe],
        seek: Callable[[int], None] = lambda segment: None,
    ) -> None:
        self._events, self.plan, self.stats = events, plan, stats
        self._mover, self._places, self._seek = mover, places, seek
        again = [(index, swap) for index, swap in enumerate(plan.swaps) if swap.recompute_seconds is not None]
        self._recipes = {index: recipes[swap.storage] for index, swap in again}
        self._needed = {source.saved for recipe in self._recipes.values() for source in recipe.sources()}
        self._saved_at: dict[int, weakref.ref[Kept]] = {}
        self._next = 0  # event
        self.clock = SegmentClock(plan.segments, stats)
        self._departed = self._is_brought = False
        self._is_broken = False
        self.futile: frozenset[int] = frozenset()
        self._futile: set[int] = set()  # of the present iteration
        self._first_saves = {swap.storage: index for index, swap in enumerate(plan.swaps)}
        self._all = movables
        self._movables = {i: m for i, swap in enumerate(plan.swaps) if (m := movables.get(swap.storage)) is not None}
        self._moving = set(self._movables.values())
        self.has_asked = False
        self._timetable = Timetable.of(plan)
        self._offsets: dict[int, int] = {}  # in the file, of what autograd saves
        self._shared_nbytes = 0  # of the file, which are not this plan's alone
        self._entries: list[weakref.ref[Entry] | None] = [None] * len(plan.swaps)  # what graphs do not hold is gone
        self._by_storage: dict[int, Entry] = {}
        self._unsettled: dict[int, Entry] = {}
        self._last: list[weakref.ref[Entry] | None] = [None] * len(plan.swaps)  # whose bytes are in the file
        self._begin()

    def _begin(self) -> None:
        """Before the first iteration: room in the file, and what is idle leaves already."""
        for movable in self._movables.values():
            movable.allot(self._mover)
        self._shared_nbytes = self._mover.file.nbytes
        for index, swap in enumerate(self.plan.swaps):
            if index not in self._movables and index not in self._recipes:
                self._offsets[index] = self._mover.file.allot(room_nbytes(swap.nbytes))
        self._all.stay({swap.storage for swap in self.plan.swaps if swap.returns > self.plan.segments})
        self.leave_idle()
        self._move()

    def _move(self) -> None:
        """What is in memory between two iterations is to be where the plan has it, not where another plan had it."""
        swaps = self.plan.swaps
        by_return = sorted(self._movables, key=lambda index: swaps[index].returns)
        for index in {swaps[index].storage: index for index in by_return}.values():  # the last of each storage
            if swaps[index].returns <= self.plan.segments:
                self._movables[index].move_to(self._places[index])

    # -- what autograd and optimizers tell --

    def saved(self, tensor: torch.Tensor) -> Kept:
        """Autograd saves a tensor: what it is to keep in its place."""
        storage = tensor.untyped_storage()
        segment = self._next
        index = self._first_saves.get(segment)
        is_followed = self.event(Event(SAVED, storage.nbytes()))
        if is_followed and index is not None and not self._is_broken:
            anew = self._by_storage[storage._cdata] = self._new_entry(index, storage)
            self._entries[index] = weakref.ref(anew)
            del anew
        kept = self._keep(tensor, storage)
        if is_followed and segment in self._needed:
            self._saved_at[segment] = weakref.ref(kept)
        return kept

    def _keep(self, tensor: torch.Tensor, storage: torch.UntypedStorage) -> Kept:
        weight = self._all.weight(storage)
        if weight is not None and weight in self._moving:
            return weight.saved(tensor)
        entry = self._by_storage.get(storage._cdata)
        if entry is None:
            return Kept(tensor)
        handle = Handle(tensor)
        handle.leave_with(entry)
        return handle

    def _new_entry(self, index: int, storage: torch.UntypedStorage) -> Entry:
        place, recipe = self._places[index], self._recipes.get(index)
        if recipe is not None:
            return EntryAgain(storage, self._mover, place, recipe, self._saved_at)
        return Entry(storage, self._mover, self._offsets[index], place)

    def taken(self, kept: Kept) -> torch.Tensor:
        """Autograd takes back what `saved` gave it."""
        segment = self._next
        is_followed = self.event(Event(TAKEN, kept.nbytes))
        if not kept.is_computed:
            tensor, seconds = kept.take()
            self.clock.wait_late(seconds)
            return tensor
        self._seek(self.plan.segments)  # what it allocates is in no plan
        tensor, seconds = kept.take()
        if is_followed:
            self._seek(segment)
        self.clock.compute_again(seconds)
        return tensor

    def event(self, event: Event) -> bool:
        """One more event; whether it is the next of the record."""
        if self._departed or event != self._events[self._next]:
            self._depart()
            if not self._is_brought and event.kind != STEP_PART:  # within a step nothing is read but what that uses
                self._is_brought = True
                self.clock.wait_late(self._all.bring_all_but_states())
            if event == self._events[-1]:
                self.clock.end_iteration(is_followed=False)
                self._begin_anew()
                self.leave_idle()
            return False
        segment, self._next = self._next, self._next + 1
        if self.has_asked and segment == 0:
            self.has_asked = False
            self.leave_idle()
        self.clock.begin(segment)
        self._seek(segment)
        try:
            self._act(segment)
        finally:
            if self._next == len(self._events):
                self.stats.iterations += 1
                self.clock.end_iteration(is_followed=True)
                self._begin_anew()
        return True

    @property
    def is_between(self) -> bool:
        """Whether the next event begins an iteration."""
        return self._next == 0 and not self._departed

    def have(self, parameters: Iterable[torch.Tensor]) -> None:
        """Have these, and the optimizer's state of them, in memory until they leave by plan.

        In the middle of a step others have been stepped already.

        Raises:
            StorageError: it could not be read.
        """
        self.clock.wait_late(self._all.bring(parameters))

    def forget_states(self) -> None:
        """The optimizer has other ones now, which stay."""
        self._movables = {index: movable for index, movable in self._movables.items() if not movable.is_state}

    # -- the plan --

    def _act(self, segment: int) -> None:
        for index in self._timetable.leaving.get(segment, ()):
            if index in self._movables:
                self._leave(index)
            elif (entry := self._entry(index)) is not None:
                self._by_storage = {key: e for key, e in self._by_storage.items() if e is not entry}
                if entry.is_computed:
                    entry.leave()
                    if entry.storage is not None and not self._is_broken:
                        self._futile.add(self.plan.swaps[index].storage)
                    continue
                last = self._last[index]
                if last is not None and (kept := last()) is not None:  # a graph of an earlier iteration still lives
                    kept.present()
                self._last[index] = weakref.ref(entry)
                entry.leave()
                self._left(index, entry)
        if self._unsettled:
            self._settle([i for i in self._timetable.gone_by.get(segment, ()) if self._is_waited_for(i)])
        for index in self._timetable.gone_before.get(segment, ()):
            gone = self._entry(index)
            if gone is not None and gone.is_held_elsewhere:
                self._futile.add(self.plan.swaps[index].storage)
        for index in self._timetable.reading.get(segment, ()):
            returning = self._entry(index)
            if returning is not None:
                returning.begin_to_return()
        due = [index for index in self._timetable.due.get(segment, ()) if index in self._movables]
        self.clock.wait_late(bring_all(self._movables[index] for index in due))

    def _entry(self, index: int) -> Entry | None:
        reference = self._entries[index]
        return reference() if reference is not None else None

    def _is_waited_for(self, index: int) -> bool:
        return self.plan.swaps[index].gone_by < self.plan.swaps[index].reads_at

    def _leave(self, index: int) -> None:
        if not self._is_broken:
            movable = self._movables[index]
            entry = movable.leave(self._mover, self._places[index])
            if entry is not None:
                self._entries[index] = weakref.ref(entry)
                self._left(index, entry)
            elif movable.entry is None:  # it is another one, or there is none
                self._futile.add(self.plan.swaps[index].storage)

    def _left(self, index: int, entry: Entry) -> None:
        self._unsettled[index] = entry
        self.stats.swapped_nbytes += self.plan.swaps[index].nbytes

    def leave_idle(self) -> None:
        """What should be away when an iteration begins, and is not, leaves, and is waited for."""
        left = [i for i, s in enumerate(self.plan.swaps) if i in self._movables and s.returns > self.plan.segments]
        for index in left:
            self._leave(index)
        self._settle(left)

    def _settle(self, needed: Collection[int]) -> None:
        """What is written is given up; what is needed is waited for."""
        for index, entry in list(self._unsettled.items()):
            began = perf_counter()
            try:
                if entry.settle(wait=index in needed):
                    del self._unsettled[index]
            except StorageError as error:
                del self._unsettled[index]
                self._break(error)
            if index in needed:
                self.clock.wait_for_room(perf_counter() - began)

    def _break(self, error: StorageError) -> None:
        """Nothing leaves memory any more."""
        if not self._is_broken:
            logger.warning("%s: training goes on with everything in memory, beyond its budget", error)
        self._is_broken = True

    def _depart(self) -> None:
        if self._departed:
            return
        self._departed = True
        self.clock.depart()
        self.stats.departed += 1
        self._stay()

    def _stay(self) -> None:
        """What autograd saved is kept in memory, as far as it is there."""
        for index in range(len(self._entries)):
            if index not in self._movables and (entry := self._entry(index)) is not None:
                entry.stay()

    def bring_back(self) -> None:
        """Have in memory what graphs may still ask for, and nothing on its way out.

        Raises:
            StorageError: something could not be read.
        """
        self._stay()
        entries = [entry for reference in self._last if reference is not None and (entry := reference()) is not None]
        for entry in (*entries, *self._unsettled.values()):
            with contextlib.suppress(StorageError):  # what could not be written is in memory
                entry.settle(wait=True)
        self._unsettled.clear()
        try:
            bring_all(entries)
        finally:
            self._mover.file.shrink(self._shared_nbytes)

    def _begin_anew(self) -> None:
        self._next, self._departed, self._is_brought = 0, False, False
        self.futile, self._futile = frozenset(self._futile), set()
        self._entries = [found if index in self._movables else None for index, found in enumerate(self._entries)]
        self._unsettled = {index: entry for index, entry in self._unsettled.items() if index in self._movables}
        self._by_storage.clear()
        self._saved_at = {}
