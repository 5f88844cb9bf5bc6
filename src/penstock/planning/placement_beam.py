"""A beam search for placements below a given height, all its partial placements in numpy arrays.

Buffers are put down one by one, each at the lowest offset above all that lie there already. Only what could not let
another, unplaced one pass beneath it comes next, as in schedule generation (Giffler and Thompson, 1960), so a
placement in which nothing can fall lower is always reached. As in MiniMalloc (Moffitt, ASPLOS 2023), what no buffer
can reach any more counts as filled at each moment, and a state ends where what is left does not fit above that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from penstock.planning.placement_buffers import Ints
from penstock.planning.placement_lattice import Array, Lattice


@dataclass(frozen=True)
class Tuning:
    """How states are compared: by the waste beneath what is placed, in places where there is little to waste.

    Attributes:
        width: states kept.
        goal: the height at which what a moment may waste is told, as a share of the load above it.
        softness: how little a moment without any waste to spare counts above others, as a share of the load.
        eagerness: how much placing large buffers early counts against waste.
        peakedness: how much more than in proportion much waste at one moment counts.
        noise: by how much the moments' weights are changed by chance.
    """

    width: int
    goal: float
    softness: float
    eagerness: float
    peakedness: float
    noise: float


@dataclass(eq=False)
class _States:
    """Partial placements, one a column.

    Attributes:
        floor: (moments, states) below it nothing can be placed any more.
        rest: (moments, states) units of unplaced buffers and of what lies above them.
        is_open: (n, states) whether the buffer is unplaced.
        offset: (n, states) where it would lie; `infinite` for placed ones.
        placed: (states,) the weighed sizes of what is placed.
        key: (states,) a hash of the set that is placed.
    """

    floor: Array
    rest: Array
    is_open: Array
    offset: Array
    placed: Array
    key: Array

    def take(self, which: Ints) -> _States:
        return _States(
            self.floor[:, which],
            self.rest[:, which],
            self.is_open[:, which],
            self.offset[:, which],
            self.placed[which],
            self.key[which],
        )


class Beam:
    """One search for places of a lattice's buffers, between what lies below and what lies above them.

    Args:
        limit: units; `search` finds no higher placement.
    """

    def __init__(self, lattice: Lattice, tuning: Tuning, limit: int, random: np.random.Generator) -> None:
        self._lattice, self._tuning, self._limit = lattice, tuning, limit
        self._least = int(lattice.load.max())
        self._spare = self._least * (1 + tuning.goal + tuning.softness) - lattice.load.astype(np.float32)
        weights = np.exp(tuning.noise * random.standard_normal(self._spare.shape)) / self._spare
        self._weights: Array = (weights / weights.sum()).astype(np.float32)
        self._reach: Array = lattice.covers.T.astype(np.float32) @ self._weights
        self._value: Array = (self._reach * lattice.size).astype(np.float32)
        self._hash = random.integers(-(2**62), 2**62, size=len(lattice.order))

    def search(self, below: Ints, above: Ints, deadline: float) -> Ints | None:
        """Offsets by row of the lattice, in units; None where the beam or the time has run out.

        Args:
            below: (moments,) units that are taken at the lower end.
            above: (moments,) units that are taken at the upper end, below `limit`.
            deadline: on the monotonic clock.
        """
        states = self._root(below, above)
        if (states.floor + states.rest).max() > self._limit:
            return None
        steps: list[tuple[Ints, Ints, Array]] = []
        for _ in self._lattice.order:
            if time.monotonic() > deadline:
                return None
            parents, rows = self._choices(states)
            if not rows.size:
                return None
            at = states.offset[rows, parents]
            states, kept = self._put(states, parents, rows, at)
            if not kept.size:
                return None
            steps.append((parents[kept], rows[kept], at[kept]))
        state = int((states.floor + states.rest).max(axis=0).argmin())
        offsets = np.zeros(len(self._lattice.order), dtype=np.int64)
        for parents, rows, at in reversed(steps):
            offsets[rows[state]] = at[state]
            state = int(parents[state])
        return offsets

    def _root(self, below: Ints, above: Ints) -> _States:
        lattice, dtype = self._lattice, self._lattice.load.dtype
        is_open = np.ones((len(lattice.order), 1), dtype=bool)
        rest = above.astype(dtype)[:, None] + (lattice.covers @ lattice.size).astype(dtype)
        floor, offset = self._reached(below.astype(dtype)[:, None], is_open)
        return _States(floor, rest, is_open, offset, np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.int64))

    def _reached(self, floor: Array, is_open: Array) -> tuple[Array, Array]:
        """`floor`, raised to what open buffers can reach, and where each of these would lie."""
        offset = np.where(is_open, self._lattice.highest(floor), self._lattice.infinite).astype(floor.dtype)
        lowest = self._lattice.lowest(offset)
        return np.where(lowest < self._lattice.infinite, lowest, floor), offset

    def _choices(self, states: _States) -> tuple[Ints, Ints]:
        """States and the rows that may come next in them, the best few by a first glance."""
        lattice, tuning = self._lattice, self._tuning
        first_end = (states.offset + lattice.size).min(axis=0)
        fits = states.offset + lattice.highest(states.rest) <= self._limit
        rows, parents = np.nonzero((states.offset < first_end) & fits)
        filled = lattice.unrolled(states.floor * self._weights)
        below = np.zeros((len(filled) + 1, filled.shape[1]), dtype=np.float32)
        np.cumsum(filled, axis=0, out=below[1:])
        beneath = below[lattice.past[rows], parents] - below[lattice.first[rows], parents]
        waste = states.offset[rows, parents] * self._reach[rows, 0] - beneath
        waste += (below[lattice.moments] - states.placed)[parents]
        score = waste - tuning.eagerness * (states.placed[parents] + self._value[rows, 0])
        return self._distinct(states, parents, rows, score)

    def _distinct(self, states: _States, parents: Ints, rows: Ints, score: Array) -> tuple[Ints, Ints]:
        """At most three times as many as the beam is wide, and of those that place the same set only the best."""
        most = 3 * self._tuning.width
        if len(score) > most:
            best = np.argpartition(score, most)[:most]
            parents, rows, score = parents[best], rows[best], score[best]
        by_score = np.argsort(score, kind="stable")
        _, first = np.unique((states.key[parents] + self._hash[rows])[by_score], return_index=True)
        chosen = by_score[first]
        return parents[chosen], rows[chosen]

    def _put(self, states: _States, parents: Ints, rows: Ints, at: Array) -> tuple[_States, Ints]:
        """The states in which `rows` are placed, the beam's width of them, and which they are."""
        lattice, tuning = self._lattice, self._tuning
        size = lattice.size[rows, 0]
        lives = lattice.covers[:, rows]
        is_open = states.is_open[:, parents]
        is_open[rows, np.arange(len(rows))] = False
        rest = states.rest[:, parents] - lives * size
        floor = np.where(lives, at + size, states.floor[:, parents])
        floor, offset = self._reached(floor, is_open)
        filled = floor + rest
        placed = states.placed[parents] + self._value[rows, 0]
        score = (floor * self._weights).sum(axis=0) - (1 + tuning.eagerness) * placed
        if tuning.peakedness:
            excess = np.maximum(filled - lattice.load, 0) / self._spare
            score += tuning.peakedness * self._least * np.square(excess).mean(axis=0)
        kept = np.flatnonzero(filled.max(axis=0) <= self._limit)
        if len(kept) > tuning.width:
            kept = kept[np.argpartition(score[kept], tuning.width)[: tuning.width]]
        put = _States(floor, rest, is_open, offset, placed, states.key[parents] + self._hash[rows])
        return put.take(kept), kept
