"""Places in a streaming region of which the upper end goes back to activations now and then (see `planning.ebbs`)."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.planning.ebbs import EbbStay, capacity_nbytes, page_nbytes, skyline
from penstock.planning.lifetimes import Use, live_nbytes
from penstock.planning.problem import Problem
from penstock.planning.ring import place_earliest, place_stack

Placed = tuple[Sequence[Use], Sequence[int], Sequence[int]]
"""Uses, ebbs among them, with the bytes that each takes and where it begins."""


class Ebbing:
    """A region that ebbs in the calls of `stays`; never, where there are none."""

    def __init__(self, problem: Problem, stays: Sequence[EbbStay]) -> None:
        self._problem, self.stays = problem, stays
        self._ebbed = [0] * len(problem.calls)
        for stay in stays:
            for call in range(stay.first, stay.last + 1):
                self._ebbed[call] += stay.nbytes

    @property
    def mean_nbytes(self) -> int:
        """How much has ebbed, in the mean over a pass's compute."""
        if not self.stays:
            return 0
        seconds = [call.seconds for call in self._problem.calls]
        weighted = sum(nbytes * own for nbytes, own in zip(self._ebbed, seconds, strict=True))
        return int(weighted / (sum(seconds) or 1.0))

    def least_nbytes(self, uses: Sequence[Use]) -> int:
        """The smallest region for `uses`, whole pages where it ebbs."""
        live_by_call = live_nbytes(self._problem, uses, self._problem.extent_nbytes)
        if not self.stays:
            return max(live_by_call, default=0)
        page = page_nbytes(self._problem)
        most = max(live + ebbed for live, ebbed in zip(live_by_call, self._ebbed, strict=True))
        return -(-most // page) * page

    def place_earliest(self, uses: Sequence[Use], extents: Sequence[int], region_nbytes: int) -> Placed | None:
        """Uses where space is released first, below what ebbs; None where some find none."""
        count = len(self._problem.calls)
        if not self.stays:
            starts = place_earliest(uses, extents, region_nbytes, count)
            return None if starts is None else (uses, extents, starts)
        region_nbytes -= region_nbytes % page_nbytes(self._problem)
        heights = [region_nbytes - ebbed for ebbed in self._ebbed]
        if min(heights, default=0) < 0:
            return None
        placed = [(use, nbytes, -1) for use, nbytes in zip(uses, extents, strict=True)]
        placed += [(use, end - begin, begin) for use, begin, end in skyline(heights, region_nbytes)]
        placed.sort(key=lambda item: item[0].first)  # stable: what is loaded for a call comes before what ebbs with it
        fixed = {index: begin for index, (_, _, begin) in enumerate(placed) if begin >= 0}
        both, all_nbytes = [use for use, _, _ in placed], [nbytes for _, nbytes, _ in placed]
        starts = place_earliest(both, all_nbytes, region_nbytes, count, fixed=fixed)
        return None if starts is None else (both, all_nbytes, starts)

    def place_stack(self, uses: Sequence[Use], extents: Sequence[int], resident_nbytes: int) -> Placed:
        """Uses, which must nest, in the least space, beside so many bytes of residents."""
        if not self.stays:
            return uses, extents, place_stack(uses, extents)
        return place_ebbing(self._problem, uses, extents, resident_nbytes)


def place_ebbing(problem: Problem, uses: Sequence[Use], extents: Sequence[int], resident_nbytes: int) -> Placed:
    """Uses, which must nest, in the least space, and ebbs of what is free above them where activations need it."""
    page, starts = page_nbytes(problem), place_stack(uses, extents)
    top_nbytes = max((start + nbytes for start, nbytes in zip(starts, extents, strict=True)), default=0)
    room = [capacity_nbytes(problem, call) - resident_nbytes for call in range(len(problem.calls))]
    placed = list(zip(uses, starts, extents, strict=True))
    if min(room, default=0) < top_nbytes:
        region_nbytes = -(-top_nbytes // page) * page
        heights = [min(nbytes // page * page, region_nbytes) for nbytes in room]
        placed += [(use, begin, end - begin) for use, begin, end in skyline(heights, region_nbytes)]
        placed.sort(key=lambda item: item[0].first)
    return [use for use, _, _ in placed], [nbytes for _, _, nbytes in placed], [start for _, start, _ in placed]
