"""When weights and gradients lie idle: the stretches of an iteration between two uses of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from penstock.training.tape import GRADIENTS, PARAMETERS, SAVED, Event, StorageRecord, Tape


@dataclass(frozen=True, slots=True, eq=False)
class Idle:
    """One weight, or one gradient.

    Attributes:
        parameter: it, or whose gradient it is.
        kind: `PARAMETERS` or `GRADIENTS`.
        nbytes: of its storage.
        gaps: first segment that does not use it, and the next that does; beyond the last one it is the next
            iteration's.
        until: of a gradient that each iteration makes anew, the segment at whose start nothing holds it any more.
    """

    parameter: torch.Tensor
    kind: str
    nbytes: int
    gaps: tuple[tuple[int, int], ...]
    until: int | None = None


def find_idle(tape: Tape, first: int, least_nbytes: int) -> Iterator[Idle]:
    """Those of an iteration, which begins with event `first`, the last of the tape.

    Its last segment is not over; the one before `first` is like it.
    """
    events = tape.events[first:]
    for record, tensor in tape.known.items():
        if record.known_as == PARAMETERS and record.nbytes >= least_nbytes:
            yield Idle(tensor, PARAMETERS, record.nbytes, _gaps_of_weight(_touches(record, first, len(events)), events))
    for record, parameter in tape.gradients.items():
        if record.nbytes < least_nbytes or record.died is not None or record.accumulated is None:
            continue
        touches = _touches(record, first, len(events))
        if record.born < first:  # each iteration adds to the same one
            yield Idle(parameter, GRADIENTS, record.nbytes, _cyclic_gaps(touches, len(events)))
        else:
            since = record.accumulated - first
            gaps = _gaps([touch for touch in touches if touch >= since])
            yield Idle(parameter, GRADIENTS, record.nbytes, gaps, _until(tape, parameter, first))


def _touches(record: StorageRecord, first: int, count: int) -> list[int]:
    """In segments of the iteration; -1 is its last one, of the iteration before."""
    return [touch - first for touch in record.touches if -1 <= touch - first < count - 1]


def _gaps(touches: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((end + 1, begin) for end, begin in pairwise(touches) if end + 1 < begin)


def _cyclic_gaps(touches: Sequence[int], count: int) -> tuple[tuple[int, int], ...]:
    return _gaps([*touches, touches[0] + count]) if touches else ()


def _gaps_of_weight(touches: Sequence[int], events: Sequence[Event]) -> tuple[tuple[int, int], ...]:
    """Not those between two uses by one forward pass.

    A tensor whose memory goes has another node accumulate its gradient from then on (torch 2.13), so two uses in one
    graph would be summed in another order.
    """

    def is_within_forward(gap: tuple[int, int]) -> bool:
        leaves, returns = gap
        return all(events[segment % len(events)].kind == SAVED for segment in range(leaves, returns + 1))

    return tuple(gap for gap in _cyclic_gaps(touches, len(events)) if not is_within_forward(gap))


def _until(tape: Tape, parameter: torch.Tensor, first: int) -> int:
    """As long as the one before it was held into this iteration."""
    count = len(tape.events) - first
    died = [
        record.died - first
        for record, owner in tape.gradients.items()
        if owner is parameter and record.died is not None and record.died >= first - 1
    ]
    return count + died[-1] + 1 if died else count
