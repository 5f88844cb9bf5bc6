"""What the runtime does with a plan, stepped from event to event: a reader, a copier and a computing thread.

It knows bytes, calls and the rules of each pacing, and nothing of moments, rings or recurrences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.planning import Plan, Problem

Span = tuple[int, int]


@dataclass(eq=False)
class Item:
    """Something that is read once: a resident, or a load of one pass. Calls are numbered on over all passes.

    Attributes:
        last: the call that releases it; infinite for a resident.
        staging: where it lies before it is copied; None where it goes straight to the arena.
        after: the call that has to have ended before it begins, whatever space there is.
        layer: in lockstep, the layer with which it is read, numbered on too.
    """

    weight: int
    first: int
    last: float
    arena: Span
    staging: Span | None
    read_seconds: float
    copy_seconds: float
    after: int
    layer: int
    read_end: float = math.inf
    copy_end: float = math.inf

    @property
    def there_at(self) -> float:
        return self.read_end if self.staging is None else self.copy_end


def overlap(one: Span | None, other: Span | None) -> bool:
    return one is not None and other is not None and one[0] < other[1] and other[0] < one[1]


class Pipeline:
    """`passes` passes of a plan; `run` gives the ends of all calls."""

    def __init__(self, problem: Problem, plan: Plan, passes: int) -> None:
        self.problem, self.plan, self.count = problem, plan, len(problem.calls)
        self.calls = self.count * passes
        lockstep = plan.pacing == "lockstep"
        firsts = sorted({load.first_call for load in plan.loads}) if lockstep else []
        self.boundaries = [number * self.count + call for number in range(passes + 2) for call in firsts]
        self.loads = [self._load(index, number) for number in range(passes + 2) for index in range(len(plan.loads))]
        self.items = self._in_order()
        self.call_end: list[float] = []
        self.cycle_begin: dict[int, float] = {-2: 0.0}

    def _span(self, offset: int, first_byte: int, nbytes: int) -> Span:
        block = self.problem.storage.block_nbytes
        return (offset + first_byte) // block, -(-(offset + first_byte + nbytes) // block)

    def _seconds(self, weight: int, span: Span, nbytes: int) -> float:
        storage, about = self.problem.storage, self.problem.weights[weight]
        requests = math.ceil(about.requests * nbytes / about.nbytes)
        return (
            requests * storage.request_seconds + (span[1] - span[0]) * storage.block_nbytes / storage.bytes_per_second
        )

    def _layer_of(self, call: int) -> int:
        return sum(boundary <= call for boundary in self.boundaries) - 1

    def _load(self, index: int, number: int) -> Item:
        load, storage = self.plan.loads[index], self.problem.storage
        base = number * self.count
        arena = self._span(load.offset, load.first_byte, load.nbytes)
        staged = self.plan.staging_nbytes > 0
        return Item(
            load.weight,
            base + load.first_call,
            base + load.last_call,
            arena,
            self._span(load.staging_offset, load.first_byte, load.nbytes) if staged else None,
            self._seconds(load.weight, arena, load.nbytes),
            (arena[1] - arena[0]) * storage.block_nbytes / storage.copy_bytes_per_second,
            base + load.after_pass * self.count + load.after_call if self.plan.pacing == "planned" else -1,
            self._layer_of(base + load.first_call),
        )

    def _in_order(self) -> list[Item]:
        """What the storage reads, in order: a resident before the first load that nothing behind is needed before."""
        items = list(self.loads)
        for slot in self.plan.resident:
            nbytes = self.problem.weights[slot.weight].nbytes
            first = min(index for index, call in enumerate(self.problem.calls) if slot.weight in call.reads)
            arena = self._span(slot.offset, 0, nbytes)
            seconds = self._seconds(slot.weight, arena, nbytes)
            layer = max(0, self._layer_of(first))
            items.append(Item(slot.weight, first, math.inf, arena, None, seconds, 0.0, -1, layer))
        residents = sorted(items[len(self.loads) :], key=lambda item: item.first)
        ordered = list(self.loads)
        for resident in reversed(residents):
            needed = 0 if self.plan.pacing == "preload" else resident.first
            behind = [all(item.first >= needed for item in ordered[place:]) for place in range(len(ordered) + 1)]
            ordered.insert(behind.index(True), resident)
        return ordered

    def run(self) -> list[float]:
        now, reading, copying, computing = 0.0, 0, 0, None
        read_end = copy_end = math.inf
        while len(self.call_end) < self.calls:
            self._begin_cycles(now)
            if read_end == math.inf and reading < len(self.items) and self._may_read(reading):
                read_end = now + self.items[reading].read_seconds
            staged = [item for item in self.loads if item.staging is not None]
            if copy_end == math.inf and copying < len(staged) and self._may_copy(staged[copying], now):
                copy_end = now + staged[copying].copy_seconds
            if computing is None and self._may_compute(now):
                number = len(self.call_end)
                call = self.problem.calls[number % self.count]
                rows = sum(self.problem.weights[w].row_seconds for w in call.reads if w in self.plan.rows)
                computing = now + rows + self._lost_seconds(number) + call.seconds
            coming = [time for time in (read_end, copy_end, computing) if time is not None and time < math.inf]
            assert coming, f"deadlock before call {len(self.call_end)}"
            now = min(coming)
            if read_end == now:
                self.items[reading].read_end, reading, read_end = now, reading + 1, math.inf
            elif copy_end == now:
                staged[copying].copy_end, copying, copy_end = now, copying + 1, math.inf
            else:
                self.call_end.append(now)
                computing = None
        return self.call_end

    def _lost_seconds(self, number: int) -> float:
        """What call `number` computes longer for the loads that it is the first to need: before the first call, all."""
        storage = self.problem.storage
        preloads = self.plan.pacing == "preload"
        items = [item for item in self.items if (0 if preloads else item.first) == number]
        reads = [item.read_seconds for item in items]
        lost = len(reads) * storage.load_compute_seconds + storage.read_compute_share * sum(reads)
        if self.plan.staging_nbytes and self.plan.pacing != "planned":
            lost += storage.copy_compute_share * sum(item.copy_seconds for item in items if item.staging is not None)
        return lost

    def _is_over(self, call: float) -> bool:
        return call < len(self.call_end)

    def _may_read(self, index: int) -> bool:
        item = self.items[index]
        if self.boundaries and item.layer - 2 not in self.cycle_begin:
            return False
        if not self._is_over(item.after):
            return False
        if self._awaits_ebb(item):
            return False
        before = self.items[:index]
        if item.staging is not None:
            return not any(overlap(item.staging, other.staging) and other.copy_end == math.inf for other in before)
        return not any(overlap(item.arena, other.arena) and not self._is_over(other.last) for other in before)

    def _awaits_ebb(self, item: Item) -> bool:
        """Whether memory that ebbs before the item is needed, where it would lie, has not come back."""
        block = self.problem.storage.block_nbytes
        for ebb in self.plan.ebbs:
            span = ebb.offset // block, (ebb.offset + ebb.nbytes) // block
            lasts = [base + ebb.last_call for base in range(0, self.calls, self.count)]
            if overlap(item.arena, span) and any(last < item.first and not self._is_over(last) for last in lasts):
                return True
        return False

    def _may_copy(self, item: Item, now: float) -> bool:
        if self.boundaries and item.layer - 1 not in self.cycle_begin:
            return False
        before = self.loads[: self.loads.index(item)]
        free = not any(overlap(item.arena, other.arena) and not self._is_over(other.last) for other in before)
        return item.read_end <= now and free

    def _may_compute(self, now: float) -> bool:
        number = len(self.call_end)
        if number in self.boundaries and self.boundaries.index(number) not in self.cycle_begin:
            return False
        if self.plan.pacing == "preload" and any(item.there_at > now for item in self.items):
            return False
        if any(item.first == number and item.there_at > now for item in self.loads):
            return False
        for weight in self.problem.calls[number % self.count].reads:
            held = [item for item in self.items if item.weight == weight and item.first <= number <= item.last]
            resident = [item for item in self.items if item.weight == weight and item.last == math.inf]
            if weight not in self.plan.rows and any(item.there_at > now for item in held or resident):
                return False
            assert held or resident or weight in self.plan.rows
        return True

    def _begin_cycles(self, now: float) -> None:
        """In lockstep: cycle t begins, and with it the reads of layer t+2 and the copies of layer t+1, when those of
        cycle t-1 and the calls before its own have ended."""
        for cycle in range(-1, len(self.boundaries)):
            if cycle in self.cycle_begin:
                continue
            reads = all(item.read_end <= now for item in self.items if item.layer <= cycle + 1)
            copies = all(item.copy_end <= now for item in self.loads if item.layer <= cycle)
            calls = cycle < 0 or len(self.call_end) == self.boundaries[cycle]
            if not (reads and copies and calls and cycle - 1 in self.cycle_begin):
                return
            self.cycle_begin[cycle] = now
