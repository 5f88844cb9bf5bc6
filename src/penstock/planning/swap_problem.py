"""What there is to decide when an iteration of training is to need less memory, in plain numbers.

An iteration is cut into *segments*, at whose starts the runtime can act. During each, some bytes are live; some of them
belong to *absences*: stretches between two uses of one storage, during which it need not be in memory. Iterations
follow each other, so an absence may begin in one and end in the next: of n segments, number n + i is the next
iteration's number i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from penstock.errors import PlanError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between memory and the next tier: a transfer takes `fixed_seconds + nbytes / bytes_per_second`."""

    fixed_seconds: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        """Raises PlanError: no transfer would ever end, or begin."""
        if not (self.bytes_per_second > 0 and np.isfinite(self.bytes_per_second)):
            raise PlanError(f"a link of {self.bytes_per_second} bytes per second carries nothing: measure it again")
        if not (self.fixed_seconds >= 0 and np.isfinite(self.fixed_seconds)):
            raise PlanError(f"a link cannot take {self.fixed_seconds} seconds before each transfer: measure it again")

    def seconds(self, nbytes: int) -> float:
        """How long `nbytes` take."""
        return self.fixed_seconds + nbytes / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class Absence:
    """A stretch during which a storage may be away.

    Attributes:
        storage: which; a storage may have several absences.
        nbytes: its size.
        leaves: the first segment that does not use it: from its start on it may be written.
        returns: the next segment that uses it: it must be back at its start. Beyond the last one it is the next
            iteration's.
        recompute_seconds: what it takes to compute it again before `returns`, instead of writing and reading it; None:
            it is written and read.
        sources: storages from which it is computed, which have to be in memory then.
    """

    storage: int
    nbytes: int
    leaves: int
    returns: int
    recompute_seconds: float | None = None
    sources: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class SwapProblem:
    """An iteration, and what may be away when.

    Attributes:
        seconds: (n,) how long each segment computes.
        load_nbytes: (n,) the most bytes that are live at one moment of each segment while nothing is away.
        absences: what may be away; those of one storage do not overlap. None takes longer than an iteration.
        recomputable: those of them that could be computed again, each beside the one that is written and read.
        out, back: the links.
        limit_nbytes: what may be in memory at any moment.
    """

    seconds: Floats
    load_nbytes: Ints
    absences: tuple[Absence, ...]
    out: Link
    back: Link
    limit_nbytes: int
    recomputable: tuple[Absence, ...] = ()

    def __post_init__(self) -> None:
        """Raises PlanError: the numbers make no sense; says which."""
        count = len(self.seconds)
        if count == 0 or len(self.load_nbytes) != count:
            raise PlanError(f"an iteration of {count} segments with {len(self.load_nbytes)} loads: record it again")
        if not (np.isfinite(self.seconds).all() and (self.seconds >= 0).all()):
            raise PlanError("a segment takes less than no time, or for ever: record the iteration again")
        if (self.load_nbytes < 0).any():
            raise PlanError("a segment has less than nothing in memory: record the iteration again")
        for index, absence in enumerate(self.absences):
            is_sound = 0 <= absence.leaves < count and absence.leaves < absence.returns <= absence.leaves + count
            if not is_sound or absence.nbytes <= 0:
                raise PlanError(f"absences[{index}] is {absence}, in an iteration of {count} segments")
            if absence.recompute_seconds is not None:
                raise PlanError(f"absences[{index}] is {absence}, which is no transfer")
        moved = set(self.absences)
        for index, absence in enumerate(self.recomputable):
            known = replace(absence, recompute_seconds=None, sources=()) in moved
            if not known or absence.recompute_seconds is None or absence.recompute_seconds < 0:
                raise PlanError(f"recomputable[{index}] is {absence}, which is none of the absences computed again")

    @cached_property
    def starts(self) -> Floats:
        """(n + 1,) when each segment starts, and the last ends, if nothing is waited for."""
        return np.concatenate([[0.0], np.cumsum(self.seconds)])

    @property
    def count(self) -> int:
        """Segments of an iteration."""
        return len(self.seconds)

    @property
    def compute_seconds(self) -> float:
        """What an iteration takes if nothing is waited for."""
        return float(self.starts[-1])

    def start(self, segment: int) -> float:
        """When a segment starts, of this iteration or another one."""
        return float(self.starts[segment % self.count]) + segment // self.count * self.compute_seconds

    def segment_at(self, seconds: float) -> int:
        """The last segment that has started at this time, of this iteration or another one."""
        iterations = np.floor(seconds / self.compute_seconds) if self.compute_seconds else 0.0
        within = seconds - iterations * self.compute_seconds
        return int(iterations) * self.count + int(np.searchsorted(self.starts[:-1], within, side="right")) - 1

    @property
    def peak_nbytes(self) -> int:
        """The most bytes that are live at one moment while nothing is away."""
        return int(self.load_nbytes.max())

    def least_nbytes(self) -> int:
        """No limit below this can be kept: what is live at the worst moment with all away that may be."""
        return int((self.load_nbytes - self.away_nbytes(self.absences)).max())

    def away_nbytes(self, absences: Sequence[Absence], until: Sequence[int] | None = None) -> Ints:
        """(n,) bytes that are away in each segment if these take as long as they can, or until these segments."""
        change = np.zeros(2 * self.count + 1, dtype=np.int64)
        ends = until if until is not None else [absence.returns for absence in absences]
        for absence, end in zip(absences, ends, strict=True):
            change[absence.leaves] += absence.nbytes
            change[end] -= absence.nbytes
        away = np.cumsum(change[:-1])
        return away[: self.count] + away[self.count :]

    def covers(self, absence: Absence, segment: int) -> bool:
        """Whether a segment, of any iteration, is within the absence."""
        return 0 <= (segment - absence.leaves) % self.count < absence.returns - absence.leaves

    def during(self, absence: Absence, values: Floats) -> Floats:
        """Of (n,) values, those of the segments of the absence."""
        if absence.returns <= self.count:
            return values[absence.leaves : absence.returns]
        return np.concatenate([values[absence.leaves :], values[: absence.returns - self.count]])

    def written_seconds(self, leaving: Sequence[tuple[int, int]]) -> list[float]:
        """When each write ends if nothing is waited for, of pairs of segment and bytes in the order of writing.

        In iterations that follow others: what these have still to write comes first.
        """
        written: list[float] = []
        free = 0.0
        for iteration in range(2):
            free, written = free - iteration * self.compute_seconds, []
            for segment, nbytes in leaving:
                free = max(free, self.start(segment)) + self.out.seconds(nbytes)
                written.append(free)
        return written

    def hidden_seconds(self, absence: Absence) -> float:
        """How much longer the absence is than writing and reading it take: below zero, something waits for it."""
        if absence.recompute_seconds is not None:
            return -absence.recompute_seconds
        away_seconds = self.start(absence.returns) - self.start(absence.leaves)
        return away_seconds - self.out.seconds(absence.nbytes) - self.back.seconds(absence.nbytes)
