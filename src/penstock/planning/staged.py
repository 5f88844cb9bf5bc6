"""Passes whose loads are read to staging memory and copied from there to the arena.

The asynchronous pipeline of Ji et al., "Demand Layering", RTSS 2022 (arXiv 2210.04024), where r, c and k are a read, a
copy and a call's compute:
R[i] = max(R[i-1], copies that free its place in staging, its planned begin) + r[i],
C[i] = max(C[i-1], R[i], calls that free its space in the arena) + c[i], and
K[k] = max(K[k-1], C of what call k reads) + k[k].
In the synchronous one, the lockstep, a cycle begins with a layer's first call: then it is in the arena, and the next
one in staging. The cycle's compute, the next layer's copy and the read of the one behind that begin together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from penstock.planning.lifetimes import Use
from penstock.planning.ring import release_moments

if TYPE_CHECKING:
    from penstock.planning.plan import Load, Plan
    from penstock.planning.problem import Problem
    from penstock.planning.simulate import Schedule


@dataclass(frozen=True, slots=True)
class Stages:
    """What the loads of a staged plan go through, by load.

    Attributes:
        copy_seconds: from staging to the arena.
        unstaged: the load whose copy is the last that frees its place in staging: of this pass, or, negative as an
            index from the end, of the pass before.
        begin: the event before which it is not read, an index into `StagedClock.ends`.
    """

    copy_seconds: Sequence[float]
    unstaged: Sequence[int]
    begin: Sequence[int]

    @classmethod
    def of(cls, problem: Problem, plan: Plan, extents: Sequence[int], begin: Sequence[int]) -> Stages:
        """Those of `plan`, whose loads read `extents` bytes, whole blocks."""
        block, count = problem.storage.block_nbytes, len(plan.loads)
        stays = [Use(load.weight, index, index) for index, load in enumerate(plan.loads)]
        starts = [(load.staging_offset + load.first_byte) // block * block for load in plan.loads]
        return cls(
            copy_seconds=[nbytes / problem.storage.copy_bytes_per_second for nbytes in extents],
            unstaged=release_moments(stays, extents, starts, plan.staging_nbytes, count),
            begin=begin,
        )


class StagedClock:
    """Where a run of passes with staging stands; as `simulate.Clock`, with `copy_ends` of each load."""

    def __init__(self, call_count: int, stages: Stages) -> None:
        self.ends = [0.0] * (2 * call_count + 1)
        self.load_ends: list[float] = []
        self.copy_ends = [0.0] * len(stages.copy_seconds)
        self.compute = 0.0
        self._stages = stages
        self._read = self._copied = self._ready = 0.0

    @property
    def copying_seconds(self) -> float:
        """What the copies of one pass take."""
        return sum(self._stages.copy_seconds)

    def advance(self, schedule: Schedule) -> None:
        """Run one more pass."""
        count = len(schedule.call_seconds)
        self.ends[:count] = self.ends[count : 2 * count]
        self.load_ends = [0.0] * len(schedule.load_seconds)
        before, self.copy_ends = self.copy_ends, [0.0] * len(self.copy_ends)
        position = 0
        for call, stop in enumerate(schedule.needed):
            while position < stop:
                self._load(schedule, position, before)
                position += 1
            self.compute = max(self.compute, self._ready) + schedule.call_seconds[call]
            self.ends[count + call] = self.compute

    def _load(self, schedule: Schedule, position: int, before: list[float]) -> None:
        """Read and copy the entry at `position`; a resident goes straight to the arena."""
        stages, load = self._stages, schedule.order[position]
        begin = self._read
        if load >= 0:
            begin = max(begin, self._unstaged(load, before), self.ends[stages.begin[load]])
        self._read = self.load_ends[position] = begin + schedule.load_seconds[position]
        if load < 0:
            self._ready = max(self._ready, self._read)
            return
        begin = max(self._copied, self._read, self.ends[schedule.release[position]])
        self._copied = self.copy_ends[load] = begin + stages.copy_seconds[load]
        self._ready = max(self._ready, self._copied)

    def _unstaged(self, load: int, before: list[float]) -> float:
        """When the place of `load` in staging is free; a resident needs none."""
        if load < 0:
            return 0.0
        copy = self._stages.unstaged[load]
        return self.copy_ends[copy] if copy >= 0 else before[copy]


class LockstepClock(StagedClock):
    """The same in lockstep. A layer is what loads of one first call bring; its cycle lasts until the next one's.

    Residents are read, on the cold pass, with the layer in whose cycle they are first needed.
    """

    def __init__(self, call_count: int, stages: Stages, loads: Sequence[Load]) -> None:
        super().__init__(call_count, stages)
        groups = groupby(range(len(loads)), key=lambda index: loads[index].first_call)
        self._layers = {call: tuple(members) for call, members in groups}
        self._following = dict(pairwise(self._layers))
        self._read_seconds: dict[int, float] = {}
        self._cycle: float | None = None  # when the present one began; None before the first pass
        self._ahead: dict[int, float] = {}  # reads that ended for the next pass

    def advance(self, schedule: Schedule) -> None:
        """Run one more pass."""
        count = len(schedule.call_seconds)
        self.ends[:count] = self.ends[count : 2 * count]
        before, self.copy_ends = self.copy_ends, [0.0] * len(self.copy_ends)
        self.load_ends = [0.0] * len(schedule.load_seconds)
        entries = self._entries(schedule)
        self._read_seconds = dict(zip(schedule.order, schedule.load_seconds, strict=True))
        if self._cycle is None:
            self._begin(schedule, entries)
        else:
            for load, end in self._ahead.items():
                self.load_ends[load] = end
        position = 0
        for call, stop in enumerate(schedule.needed):
            if call in self._layers:
                self._next_cycle(schedule, entries, call, before)
            while position < stop:
                if schedule.order[position] < 0:  # those of the calls before the first layer
                    self.compute = max(self.compute, self.load_ends[position])
                position += 1
            self.compute += schedule.call_seconds[call]
            self.ends[count + call] = self.compute

    def _entries(self, schedule: Schedule) -> dict[int, list[int]]:
        """Positions of what is read for each layer, by its call; -1 for what calls before the first layer need."""
        entries: dict[int, list[int]] = {-1: [], **{call: [] for call in self._layers}}
        position, layer = 0, -1
        for call, stop in enumerate(schedule.needed):
            layer = call if call in self._layers else layer
            entries[layer] += range(position, max(position, stop))
            position = max(position, stop)
        return entries

    def _begin(self, schedule: Schedule, entries: dict[int, list[int]]) -> None:
        """The cycle before the first copy: the first layer is read."""
        self._cycle = 0.0
        for position in (*entries[-1], *entries[next(iter(self._layers))]):
            self._cycle += schedule.load_seconds[position]
            self.load_ends[position] = self._cycle

    def _next_cycle(self, schedule: Schedule, entries: dict[int, list[int]], call: int, before: list[float]) -> None:
        """End the present cycle: copy the layer that begins with `call`, read the one after it, wait for both."""
        stages, begin = self._stages, self._cycle or 0.0
        copied = read = begin
        for position in entries[call]:
            if (load := schedule.order[position]) >= 0:
                copied = max(copied, self.ends[schedule.release[position]]) + stages.copy_seconds[load]
                self.copy_ends[load] = copied
        if (following := self._following.get(call)) is not None:
            for position in entries[following]:
                load = schedule.order[position]
                read = max(read, self._unstaged(load, before)) + schedule.load_seconds[position]
                self.load_ends[position] = read
        else:  # the first layer of the next pass, for which this pass is the one before
            for load in self._layers[next(iter(self._layers))]:
                read = max(read, self._unstaged(load, self.copy_ends)) + self._read_seconds[load]
                self._ahead[load] = read
        self._cycle = self.compute = max(self.compute, copied, read)
