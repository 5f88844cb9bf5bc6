"""When a weight has to be in memory within a pass, and the least memory in which a pass can run at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from penstock.planning.problem import Problem
from penstock.planning.slicing import finest_extent_nbytes


@dataclass(frozen=True, slots=True)
class Use:
    """One stay of a weight in memory: from call `first` to the end of call `last`, loaded once."""

    weight: int
    first: int
    last: int


def list_uses(problem: Problem, *, patience: float = 0.0, without: Collection[int] = ()) -> list[Use]:
    """Every stay that a streamed weight needs, in order of first call, of all weights but those in `without`.

    Reads within one another's stay share a load. A weight also stays between two uses if no more than `patience` times
    its own bytes are read in between: to keep it takes space from the stream, to load it again bandwidth. What is
    joined stays from its first to its last call.
    """
    uses: list[Use] = []
    open_uses: dict[int, int] = {}
    streamed = [[weight for weight in call.reads if weight not in without] for call in problem.calls]
    read_before = list(accumulate((_first_bytes(problem, reads) for reads in streamed), initial=0))
    for index, call in enumerate(problem.calls):
        for weight in streamed[index]:
            position = open_uses.get(weight)
            if position is not None:
                last = uses[position].last
                between_nbytes = read_before[index] - read_before[last + 1] if last < index else 0
                is_short = patience > 0 and between_nbytes <= patience * problem.extent_nbytes(weight)
                if index <= last or is_short or problem.weights[weight].is_joined:
                    uses[position] = Use(weight, uses[position].first, max(last, call.last))
                    continue
            open_uses[weight] = len(uses)
            uses.append(Use(weight, index, call.last))
    return uses


def _first_bytes(problem: Problem, reads: Sequence[int]) -> int:
    return sum(problem.extent_nbytes(weight) for weight in reads if not problem.weights[weight].rows_only)


def largest_live_nbytes(
    problem: Problem,
    uses: Sequence[Use],
    without: Collection[int] = (),
    extent_nbytes: Callable[[int], int] | None = None,
) -> int:
    """The most bytes that are in memory at once when every use is loaded just in time, but for weights in `without`.

    `extent_nbytes` says what a weight takes, `problem.extent_nbytes` if it is None.

    Uses without patience nest as calls do, so a stack of extents holds them without a gap: this is the least memory
    in which they can be streamed, exactly.
    """
    streamed = [use for use in uses if use.weight not in without]
    return max(live_nbytes(problem, streamed, extent_nbytes or problem.extent_nbytes), default=0)


def streamable_uses(problem: Problem) -> list[Use]:
    """The stays of all weights that calls read whole, without patience, so that they nest as calls do."""
    return [use for use in list_uses(problem) if not problem.weights[use.weight].rows_only]


def live_nbytes(problem: Problem, uses: Sequence[Use], extent_nbytes: Callable[[int], int]) -> list[int]:
    """For each call the bytes of the weights that have to be in memory while it runs."""
    change = [0] * (len(problem.calls) + 1)
    for use in uses:
        change[use.first] += extent_nbytes(use.weight)
        change[use.last + 1] -= extent_nbytes(use.weight)
    return list(accumulate(change[:-1]))


def needed_nbytes(problem: Problem, *, sliced: bool) -> int:
    """The smallest budget for which a plan exists: the reserve, and the weights that one moment of a pass needs.

    Exact: any plan holds these weights at that moment, and a plan that streams everything needs no more. With
    `sliced`, of a weight that can be sliced it is one slice, as fine as they come.
    """
    uses = streamable_uses(problem)
    extent_nbytes = partial(finest_extent_nbytes, problem) if sliced else None
    return max(1, problem.reserve.total_nbytes + largest_live_nbytes(problem, uses, extent_nbytes=extent_nbytes))
