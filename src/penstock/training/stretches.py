"""When weights and gradients lie idle: the stretches of an iteration between two uses of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from penstock.training.tape import GRADIENTS, PARAMETERS, StorageRecord, Tape


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
    count = len(tape.events) - first
    for record, tensor in tape.known.items():
        if record.known_as == PARAMETERS and record.nbytes >= least_nbytes:
            gaps = _cyclic_gaps(_within(record.touches, first, count), count)
            if tensor.requires_grad:
                made, used_up = _within(record.calls, first, count), _accumulations(tape, tensor, first)
                gaps = tuple(gap for gap in gaps if not _has_node(gap, made, used_up, count))
            yield Idle(tensor, PARAMETERS, record.nbytes, gaps)
    for record, parameter in tape.gradients.items():
        if record.nbytes < least_nbytes or record.died is not None or not _is_alone(tape, record, first):
            continue
        touches = _within(record.touches, first, count)
        if record.born < first:  # each iteration adds to the same one
            yield Idle(parameter, GRADIENTS, record.nbytes, _cyclic_gaps(touches, count))
        else:
            since = record.accumulated[0] - first
            gaps = _gaps([touch for touch in touches if touch >= since])
            yield Idle(parameter, GRADIENTS, record.nbytes, gaps, _until(tape, parameter, first))


def _within(segments: Sequence[int], first: int, count: int) -> list[int]:
    """In segments of the iteration; -1 is its last one, of the iteration before."""
    return [segment - first for segment in segments if -1 <= segment - first < count - 1]


def _accumulations(tape: Tape, parameter: torch.Tensor, first: int) -> list[int]:
    found = (record.accumulated for record, owner in tape.gradients.items() if owner is parameter)
    return sorted(segment - first for segments in found for segment in segments if segment >= first)


def _is_alone(tape: Tape, record: StorageRecord, first: int) -> bool:
    """Whether its parameter has no other gradient in the iteration."""
    parameter = tape.gradients[record]
    others = (other for other, owner in tape.gradients.items() if owner is parameter and other is not record)
    return all(other.accumulated[-1] < first for other in others)


def _gaps(touches: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((end + 1, begin) for end, begin in pairwise(touches) if end + 1 < begin)


def _cyclic_gaps(touches: Sequence[int], count: int) -> tuple[tuple[int, int], ...]:
    return _gaps([*touches, touches[0] + count]) if touches else ()


def _has_node(gap: tuple[int, int], calls: Sequence[int], accumulations: Sequence[int], count: int) -> bool:
    """Whether a function has made a node that is to accumulate a gradient, and the next one to get the weight is to
    use the same.

    A weight whose memory goes has another node from then on (torch 2.13), so gradients of one graph would be summed in
    another order.
    """
    leaves, returns = gap
    before = max((call for call in _thrice(calls, count) if call < leaves), default=None)
    after = min((call for call in _thrice(calls, count) if call >= returns), default=None)
    if before is None or after is None:
        return False
    return not any(before <= accumulation < after for accumulation in _thrice(accumulations, count))


def _thrice(segments: Sequence[int], count: int) -> Iterator[int]:
    """Of the iteration before, of this one, and of the next one."""
    return (segment + turn * count for turn in (-1, 0, 1) for segment in segments)


def _until(tape: Tape, parameter: torch.Tensor, first: int) -> int:
    """As long as the one before it was held into this iteration."""
    count = len(tape.events) - first
    died = [
        record.died - first
        for record, owner in tape.gradients.items()
        if owner is parameter and record.died is not None and record.died >= first - 1
    ]
    return count + died[-1] + 1 if died else count
