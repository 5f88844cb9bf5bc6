"""What a warm pass has in memory during each of its calls, by kind: a plan's whole memory over time.

FlexNN (Li et al., MobiCom 2024) plans weights, activations and workspace as one packing in memory and time; this is
that packing, seen from the side of the budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.planning.plan import Plan

KINDS = ("resident weights", "streamed weights", "free arena", "staging", "activations", "I/O buffers", "bookkeeping")
"""In the order of `CallMemory.by_kind`. Bookkeeping is Python's objects, the kernels' workspace and the margin."""


@dataclass(frozen=True, slots=True)
class CallMemory:
    """The most bytes in memory from a call's begin to the next call's, by kind.

    Attributes:
        resident_nbytes: weights that stay.
        streamed_nbytes: what is held of streamed weights, is there already or is just being loaded, in whole blocks.
        free_nbytes: what is left of the arena. It counts: the arena stays in memory whether weights lie in it or not.
        activations_nbytes: the pass's own tensors.
        lent_nbytes: of the arena, what has gone back to the system for them (see `plan.Ebb`). It does not count.
        bookkeeping_nbytes: Python's objects, the kernels' workspace and the margin for both.
    """

    resident_nbytes: int
    streamed_nbytes: int
    free_nbytes: int
    staging_nbytes: int
    activations_nbytes: int
    io_nbytes: int
    bookkeeping_nbytes: int
    lent_nbytes: int = 0

    @property
    def by_kind(self) -> dict[str, int]:
        """The bytes of each of `KINDS`."""
        sizes = (
            self.resident_nbytes,
            self.streamed_nbytes,
            self.free_nbytes,
            self.staging_nbytes,
            self.activations_nbytes,
            self.io_nbytes,
            self.bookkeeping_nbytes,
        )
        return dict(zip(KINDS, sizes, strict=True))

    @property
    def total_nbytes(self) -> int:
        """All of it; what the budget has to hold during the call."""
        return sum(self.by_kind.values())


def memory_over_time(plan: Plan) -> tuple[CallMemory, ...]:
    """For each call of a warm pass, what is in memory. Nothing else than the plan is needed, so a saved one will do."""
    return tuple(_calls(plan))


def _calls(plan: Plan) -> Iterator[CallMemory]:
    sizes, reserve = dict(enumerate(plan.weight_nbytes)), plan.reserve
    resident_nbytes = sum(sizes.get(slot.weight, 0) for slot in plan.resident)
    lent = _lent(plan)
    streamed, activations = plan.prediction.call_streamed_nbytes, plan.call_activations_nbytes
    for call in range(len(plan.call_names)):
        streamed_nbytes = streamed[call] if call < len(streamed) else 0
        yield CallMemory(
            resident_nbytes=resident_nbytes,
            streamed_nbytes=streamed_nbytes,
            free_nbytes=max(plan.arena_nbytes - lent[call] - resident_nbytes - streamed_nbytes, 0),
            staging_nbytes=plan.staging_nbytes,
            activations_nbytes=activations[call] if call < len(activations) else reserve.activations_nbytes,
            io_nbytes=reserve.io_nbytes,
            bookkeeping_nbytes=reserve.bookkeeping_nbytes,
            lent_nbytes=lent[call],
        )


def _lent(plan: Plan) -> list[int]:
    """The bytes of the arena that have gone back to the system, during each call."""
    change = [0] * (len(plan.call_names) + 1)
    for ebb in plan.ebbs:
        change[ebb.first_call] += ebb.nbytes
        change[ebb.last_call + 1] -= ebb.nbytes
    return list(accumulate(change[:-1]))


def peak_call(plan: Plan) -> int | None:
    """The call that needs most memory, the first of several; None where there is no call."""
    totals = [each.total_nbytes for each in memory_over_time(plan)]
    return max(range(len(totals)), key=lambda call: (totals[call], -call)) if totals else None


def peak_nbytes(plan: Plan) -> int:
    """The most that a pass needs, in bytes.

    Where no call is said to have the most that the reserve keeps for activations, that may be at any time, and counts
    beside the whole arena.
    """
    activations = plan.call_activations_nbytes
    totals = [each.total_nbytes for each in memory_over_time(plan)]
    if not totals or max(activations, default=0) < plan.reserve.activations_nbytes:
        return max([plan.arena_nbytes + plan.staging_nbytes + plan.reserve.total_nbytes, *totals])
    return max(totals)
