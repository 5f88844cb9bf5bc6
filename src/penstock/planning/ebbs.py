"""When activations are large: for how long, and how much of the arena they had better get meanwhile.

An arena beside which the largest activations always have room is small where a pass is not. One that is larger gives
part of its memory back during the calls that need it: it ebbs. FlexNN (Li et al., MobiCom 2024) packs weights and
activations into one space of memory and time; here the activations stay with the allocator, and what the packing gives
them is memory, not an address.

A *level* is the bytes of activations for which there is room beside the whole arena. Calls that have more need an ebb.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from penstock.planning.lifetimes import Use, live_nbytes, streamable_uses
from penstock.planning.problem import Problem
from penstock.planning.slicing import finest_extent_nbytes

NOTHING = -1
"""The weight of a `Use` that is an ebb: nothing is loaded for it, and nothing lies in its place."""

MOST_LEVELS = 16


@dataclass(frozen=True, slots=True)
class EbbStay:
    """Calls `first` to `last`, while which `nbytes` of the arena have gone back: a multiple of `page_nbytes`."""

    first: int
    last: int
    nbytes: int


def page_nbytes(problem: Problem) -> int:
    """In multiples of which the arena can give memory back, whole blocks of storage too."""
    return math.lcm(problem.storage.page_nbytes, problem.storage.block_nbytes)


def knows_activations(problem: Problem) -> bool:
    """Whether the calls tell when activations are largest. If not, they may be so at any time, and no ebb helps."""
    most_nbytes = max((call.activations_nbytes for call in problem.calls), default=0)
    return problem.reserve.activations_nbytes <= most_nbytes


def capacity_nbytes(problem: Problem, call: int) -> int:
    """What the budget leaves for the arena during call number `call`, in bytes; below zero if nothing."""
    reserve = problem.reserve
    fixed_nbytes = reserve.io_nbytes + reserve.bookkeeping_nbytes
    activations_nbytes = problem.calls[call].activations_nbytes
    if not knows_activations(problem):
        activations_nbytes = reserve.activations_nbytes
    return problem.budget_nbytes - fixed_nbytes - activations_nbytes


def level_candidates(problem: Problem, most: int = MOST_LEVELS) -> list[int]:
    """Levels worth trying, in bytes, descending: the activations of calls, at most `most` different ones.

    The first is the most that any call has: without ebbs, everything is as it always was.
    """
    if not problem.calls or not knows_activations(problem):
        return [problem.reserve.activations_nbytes]
    levels = sorted({call.activations_nbytes for call in problem.calls}, reverse=True)
    if len(levels) <= most:
        return levels
    return [levels[index * (len(levels) - 1) // (most - 1)] for index in range(most)]


def list_ebbs(problem: Problem, level_nbytes: int, *, top_nbytes: int | None = None) -> list[EbbStay]:
    """The calls that have more activations than `level_nbytes`, and how much more, in order, none within another.

    Calls in a row are one stay, and so are two stays between which there is no time to fill the smaller one's place: to
    get its pages and read. Of what exceeds `top_nbytes` nothing counts, so that stays of several levels can be put on
    one another: `list_ebbs(p, low, top_nbytes=high) + list_ebbs(p, high)` give back less than `list_ebbs(p, low)` where
    activations are between the two.
    """
    if not knows_activations(problem):
        return []
    page, stays = page_nbytes(problem), list[EbbStay]()
    for index, call in enumerate(problem.calls):
        activations_nbytes = min(call.activations_nbytes, top_nbytes or call.activations_nbytes)
        if activations_nbytes > level_nbytes:
            stay = EbbStay(index, index, -(-(activations_nbytes - level_nbytes) // page) * page)
            if stays and _is_near(problem, stays[-1], stay):
                before = stays.pop()
                stay = EbbStay(before.first, index, max(before.nbytes, stay.nbytes))
            stays.append(stay)
    return stays


def _is_near(problem: Problem, before: EbbStay, after: EbbStay) -> bool:
    if before.last + 1 == after.first:
        return True
    storage, nbytes = problem.storage, min(before.nbytes, after.nbytes)
    between_seconds = math.fsum(call.seconds for call in problem.calls[before.last + 1 : after.first])
    return between_seconds < nbytes / storage.regain_bytes_per_second + nbytes / storage.bytes_per_second


def needed_nbytes(problem: Problem, *, sliced: bool) -> int:
    """The smallest budget for which there is a plan, with ebbs: what the hardest call needs, not what any two do.

    No plan needs less than the weights, activations and the rest of that call. This is so many bytes more as it takes
    to give whole pages back, less than `page_nbytes`, and is what `strategies.ebbing.place_ebbing` goes with.
    """
    return needed_with(problem, partial(finest_extent_nbytes, problem) if sliced else problem.extent_nbytes)


def needed_with(problem: Problem, extent_nbytes: Callable[[int], int]) -> int:
    """The same where weights, by index, take as much of the arena at once as `extent_nbytes` says."""
    uses = streamable_uses(problem)
    reserve, page = problem.reserve, page_nbytes(problem)
    live = live_nbytes(problem, uses, extent_nbytes)
    without_ebbs = max(1, reserve.total_nbytes + max(live, default=0))
    if not knows_activations(problem):
        return without_ebbs
    most_nbytes = max(
        (call.activations_nbytes + -(-nbytes // page) * page for call, nbytes in zip(problem.calls, live, strict=True)),
        default=0,
    )
    return max(1, min(without_ebbs, most_nbytes + reserve.io_nbytes + reserve.bookkeeping_nbytes))


def skyline(heights: Sequence[int], base: int) -> Iterator[tuple[Use, int, int]]:
    """Ebbs that together leave `heights[call]` bytes of `base` below them, and nothing above: use, begin, end.

    As few as can be: one begins wherever the height falls, and ends where it rises to that again.
    """
    open_ebbs: list[tuple[int, int, int]] = []  # first call, begin, end; each below the one before
    found = []
    for call, height in enumerate((*heights, base)):
        while open_ebbs and open_ebbs[-1][1] < height:
            first, begin, end = open_ebbs.pop()
            found.append((Use(NOTHING, first, call - 1), begin, min(end, height)))
            if end > height:  # only its lower part ends here
                open_ebbs.append((first, height, end))
        top = open_ebbs[-1][1] if open_ebbs else base
        if height < top:
            open_ebbs.append((call, height, top))
    return iter(sorted(found, key=lambda item: item[0].first))
