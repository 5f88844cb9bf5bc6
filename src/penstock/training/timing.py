"""The pass of an iteration as it really is: how long each segment takes, and what the allocator sees, unrecorded.

Recording an operation takes time and keeps its arguments for longer. So after it iterations run once more without, only
their events noted.
"""

from __future__ import annotations

from time import perf_counter

import torch

from penstock.training.iteration import Iteration
from penstock.training.pool import Pool
from penstock.training.tape import GRADIENTS, Event

ITERATIONS = 2
"""One is read, and the one after it tells when what it leaves behind is released."""


class Timing:
    """Iterations that go through the same events.

    Args:
        iteration: as it was recorded.
        pool: which records meanwhile, if it is preloaded.

    Attributes:
        iteration: as it was recorded.
        allocations: for each event that saves what may leave, which recorded allocation its storage was last; -1 if
            none was.
        gradients: the same of gradients, by the identity of whose they are.
        marked: events so far, as the pool counts them.
    """

    def __init__(self, iteration: Iteration, pool: Pool | None) -> None:
        self.iteration, self._events, self._pool = iteration, iteration.events, pool
        self._next = self.marked = self._iterations = 0
        self._is_lost = False  # until an iteration ends
        self._began = perf_counter()
        self._seconds: list[float] = []
        self._all_seconds: list[list[float]] = []
        self.allocations: dict[int, int] = {}
        self.gradients: dict[int, int] = {}
        if pool is not None:
            pool.record()

    def event(self, event: Event, storage: torch.UntypedStorage | None = None) -> None:
        """A segment ends here, and the next one begins."""
        now = perf_counter()
        if self._pool is not None:
            self._pool.mark(self.marked)
        self.marked += 1
        self._seconds.append(now - self._began)
        self._began = now
        if self._is_lost or event != self._events[self._next]:
            self._is_lost, self._next = event != self._events[-1], 0
            self._all_seconds.clear()
            self._seconds.clear()
            return
        if self._pool is not None and storage is not None and self._next in self.iteration.until:
            self.allocations[self._next] = self._pool.ordinal(storage.data_ptr())
        self._next += 1
        if self._next == len(self._events):
            self._find_gradients()
            self._all_seconds.append(self._seconds)
            self._seconds, self._next = [], 0

    def _find_gradients(self) -> None:
        for idle in self.iteration.idle:
            if self._pool is not None and idle.kind == GRADIENTS and idle.parameter.grad is not None:
                self.gradients[id(idle.parameter)] = self._pool.ordinal(idle.parameter.grad.data_ptr())

    @property
    def is_done(self) -> bool:
        return len(self._all_seconds) >= ITERATIONS

    def seconds(self) -> tuple[float, ...]:
        """Of each segment, the shortest that it took: other work disturbs it least."""
        shortest = [min(times) for times in zip(*self._all_seconds, strict=True)]
        # What ends with an event was measured there; the segment that the last one began ends with the first one.
        return (*shortest[1:], shortest[0])
