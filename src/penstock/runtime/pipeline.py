"""Loads in plan order, paced by finished layers.

It submits loads strictly in order, each as soon as every load whose extent overlaps its own has been released; so a
layer can never compute with bytes that are not its own, whatever order completions arrive in. After the last load of a
pass it goes on with the first: weights never change. A caller that departs from the order seeks, or demands single
loads; the pipeline then gives up whatever is in the way.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from time import perf_counter

from penstock.errors import StreamStateError
from penstock.runtime.devices.base import Arena, Device, TransferQueue
from penstock.runtime.events import EventLog
from penstock.runtime.failures import Failures
from penstock.runtime.loads import PlannedLoad, conflicts, expected
from penstock.runtime.order import LoadOrder
from penstock.runtime.pacing import Gates, LockstepPace, Pace
from penstock.runtime.pipeline_stats import PipelineStats
from penstock.runtime.storage import Storage

ABSENT, LOADING, READY = 0, 1, 2

IN_FLIGHT_NBYTES = 8 << 20
"""Enough submitted ahead to keep every reader busy; more would only lengthen the wait of a demanded load."""

IN_FLIGHT_LOADS = 2
"""However large, so that the next one begins the moment one has arrived."""


class PlaceTakenError(Exception):
    """A layer that still computes holds the place of the load that is asked for: no plan knows this order of calls."""


class Pipeline:
    """Executes loads into one arena. Every public method may be called by any thread but `wait` by one at a time."""

    def __init__(
        self,
        device: Device,
        arena: Arena,
        storage: Storage,
        loads: Sequence[PlannedLoad],
        *,
        staging: Arena | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._device, self.arena, self._loads = device, arena, tuple(loads)
        self.states = [ABSENT] * len(self._loads)
        self.held = [0] * len(self._loads)  # layers that compute with it now
        self.stats = PipelineStats()
        self._events: EventLog | None = None
        self._doomed: set[int] = set()  # in flight, but wanted no more
        self._failures = Failures()
        self._conflicts = conflicts(self._loads)
        self._order = LoadOrder()
        self.pace = pace or Pace()
        self._in_flight = 0
        self._in_flight_nbytes = 0
        self._blocked = False  # the next load's place is taken: a release may free it
        self._closed = False
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._is_staged = staging is not None
        # Last: an interrupt behind it would leave its threads to nobody.
        self._queue: TransferQueue = device.open_queue(arena, storage, self._arrived, staging=staging)

    def start(self, first: Sequence[int], then: Sequence[int]) -> None:
        """Load in the order `first` once, then in the order `then` again and again. What nobody holds is given up."""
        with self._changed:
            self._check_open()
            self._discard_unheld(range(len(self._loads)))
            self._order.set(self._missing(first), then)
            self.pace.restart()
            self._expect()
            self._pump()

    def record(self, events: EventLog | None, names: Sequence[str]) -> None:
        """Note from now on in `events` what happens to loads, which are called `names`; if None, nowhere."""
        with self._changed:
            self._events = self._queue.events = events
            if events is not None:
                present = [load for load, state in enumerate(self.states) if state != ABSENT]
                noted = [load.noted(name) for name, load in zip(names, self._loads, strict=True)]
                events.plan_taken(noted, present, self.arena.nbytes)

    def seek(self, call_order: Sequence[int], keep: Callable[[int], bool]) -> None:
        """Go on with `call_order`, and after it with the order that repeats.

        Loads that are unused and not to `keep` are given up; those of `call_order` that are kept are not loaded again.
        """
        with self._changed:
            self._check_open()
            self._discard_unheld([load for load in range(len(self._loads)) if not keep(load)])
            self._order.set(self._missing(call_order), self._order.then, self._order.lap)
            self.pace.free()
            self._expect()
            self._pump()

    def begun(self, call: int) -> None:
        """A call of the schedule begins. In lockstep it waits for all that is under way, then the next cycle begins."""
        if isinstance(self.pace, LockstepPace) and self.pace.begins_layer(call):
            began = perf_counter()
            self._queue.drain()
            self.stats.stall_seconds += perf_counter() - began
            with self._changed:
                self._expect()
                self._pump()

    def ended(self, call: int | None) -> None:
        """A call of the schedule has ended; None: the pass, and the next one's calls will be told of."""
        with self._changed:
            self.pace.ended(call)
            if self._blocked:
                self._pump()

    def follow(self, gates: Gates) -> None:
        """From the next pass on, calls are those of another schedule of the same plan."""
        with self._changed:
            self.pace.set(gates)

    def forgive(self) -> None:
        """Forget errors that nobody has met yet: what failed may work by now, and is tried again.

        What is in flight is of the past, too: nobody meets its error either, a layer that wants it has it read again.
        """
        with self._changed:
            in_flight = (load for load, state in enumerate(self.states) if state == LOADING)
            if self._failures.forgive(in_flight) and not self._closed:
                self._pump()

    def hold(self, load: int) -> None:
        """Wait until `load` is there and keep it until `release`.

        Raises:
            PlaceTakenError: it cannot come as long as another load is held.
            StorageError, CheckpointError: it could not be read. A later call tries again.
        """
        if self.states[load] != READY:
            if self._events is not None:
                self._events.wait_begun(load)
            self._wait(load)
            if self._events is not None:
                self._events.wait_ended(load)
        self.held[load] += 1

    def lend(self, ebb: int) -> bool:
        """Give the memory of an ebb's place back and keep it empty until `release`; False where a layer has it."""
        with self._changed:
            if all(self.states[other] == ABSENT for other in (ebb, *self._conflicts[ebb])):
                self._note_taken(ebb)
                self.states[ebb] = READY
        try:
            if self.states[ebb] != READY:  # in an order that no plan knows, what was loaded there has to go
                self._wait(ebb)
        except PlaceTakenError:
            return False
        self.held[ebb] += 1
        self.arena.give_back(self._loads[ebb].extent_begin, self._loads[ebb].extent_nbytes)
        return True

    def release(self, load: int, *, keep: bool = False) -> None:
        """One holder fewer; the last one frees the space unless `keep`."""
        self.held[load] -= 1
        if self.held[load] or keep:
            return
        with self._changed:
            self._discard(load)
            if self._blocked:
                self._pump()

    def recover(self) -> None:
        """After an interrupt, which may have come between any two steps: nothing in flight, the account of it right."""
        self.disown()
        with self._changed:
            if self._closed:
                return
            self._order.set((), ())
            self._queue.expect((), ())
        self._queue.drain()  # without the lock: readers take it to report
        with self._changed:
            for load, state in enumerate(self.states):
                if state == LOADING:
                    self._set_absent(load)
            self._doomed.clear()
            self._failures.forgive(())
            self._in_flight = self._in_flight_nbytes = 0

    def disown(self) -> None:
        """Give up the lock, which this thread has no right to here, but may have kept when an interrupt came."""
        with contextlib.suppress(RuntimeError):
            while True:
                self._lock.release()

    def close(self) -> None:
        """End every transfer and thread. Safe to call twice, from a finalizer, and in a forked child."""
        if os.getpid() == self._process:  # a child has neither the threads nor the holder of the lock
            with self._changed:
                self._closed = True
                self._order.set((), ())
                self._changed.notify_all()
        self._queue.close()

    # -- below: called with the lock held --

    def _check_open(self) -> None:
        if self._closed:
            raise StreamStateError("this stream is closed")

    def _missing(self, order: Sequence[int]) -> list[int]:
        return [load for load in order if self.states[load] == ABSENT or load in self._doomed]

    def _discard_unheld(self, loads: Sequence[int]) -> None:
        for load in loads:
            if not self.held[load]:
                self._discard(load)

    def _wait(self, load: int) -> None:
        began = perf_counter()
        with self._changed:
            while self.states[load] != READY:
                self._check_open()
                self._failures.meet(load)
                self._doomed.discard(load)
                if self.states[load] == ABSENT and not self._in_flight and not self._pump():
                    self._demand(load)
                    continue
                self._changed.wait()
        self.stats.stall_seconds += perf_counter() - began

    def _pump(self) -> bool:
        """Submit what may start; whether anything is in flight afterwards."""
        self._blocked = False
        while self._in_flight_nbytes < IN_FLIGHT_NBYTES or self._in_flight < IN_FLIGHT_LOADS:
            if (load := self._order.peek()) is None:
                break
            if not self._may_start(load):
                self._blocked = True
                break
            self._order.take()
            self._submit(load)
        return self._in_flight > 0

    def _expect(self) -> None:
        """Let a queue with a copy stage know what comes."""
        if self._is_staged:
            order, then = self.pace.ahead(self._order.first, self._order.then)
            self._queue.expect(expected(self._loads, order), expected(self._loads, then))

    def _may_start(self, load: int) -> bool:
        if load in self._failures or self.states[load] != ABSENT or not self.pace.may_start(load, self._order.lap):
            return False
        return all(self.states[other] == ABSENT for other in self._conflicts[load])

    def _demand(self, load: int) -> None:
        """Load it now, out of order, giving up what is in the way."""
        self.stats.demand_loads += 1
        for other in self._conflicts[load]:
            if self.held[other]:
                raise PlaceTakenError
            self._discard(other)
        self._submit(load)

    def _submit(self, load: int) -> None:
        planned = self._loads[load]
        self.states[load] = LOADING
        self._note_taken(load)
        self._count(load, 1)
        try:
            self._queue.submit(
                load, planned.source, planned.offset, realign=planned.realign, staging_offset=planned.staging_offset
            )
        except BaseException:
            # An interrupt before the queue had it: as if it had never been begun.
            self._set_absent(load)
            self._count(load, -1)
            raise

    def _count(self, load: int, change: int) -> None:
        self._in_flight += change
        self._in_flight_nbytes += change * self._loads[load].source.nbytes

    def _note_taken(self, load: int) -> None:
        if self._events is not None:
            self._events.place_taken(load)

    def _set_absent(self, load: int) -> None:
        self.states[load] = ABSENT
        if self._events is not None:
            self._events.place_freed(load)

    def _discard(self, load: int) -> None:
        self._failures.forget(load)
        if self.states[load] == LOADING:
            self._doomed.add(load)
        elif self.states[load] == READY and not self._loads[load].resident:
            self._set_absent(load)
            self._device.freed(self.arena, self._loads[load].extent_begin, self._loads[load].extent_nbytes)

    def _arrived(self, load: int, error: BaseException | None) -> None:
        with self._changed:
            self._count(load, -1)
            if self._events is not None:
                self._events.arrived(load)
            if error is not None:
                self._set_absent(load)
                if load not in self._doomed:
                    self._failures.note(load, error)
            else:
                self.stats.bytes_read += self._loads[load].source.nbytes
                self.states[load] = READY
                if load in self._doomed:
                    self._discard(load)
            self._doomed.discard(load)
            self._failures.arrived(load)
            if not self._closed:
                self._pump()
            self._changed.notify_all()
