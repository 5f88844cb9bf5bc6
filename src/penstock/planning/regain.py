"""Which loads fill memory that has ebbed away: the pages come anew while they are read, which takes its time."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.planning.plan import Ebb, Load
from penstock.planning.problem import Problem
from penstock.planning.ring import Occupants

_KEPT, _EBBED = 0, 1


def regained_nbytes(problem: Problem, loads: Sequence[Load], ebbs: Sequence[Ebb]) -> list[int]:
    """For each of `loads` the bytes of its blocks that were given back since anything else lay there.

    The first to fill a place after an ebb pays for it; where nothing does, nobody. Whatever shares bytes comes one
    after the other, so the calls with which they end tell the order.
    """
    found = [0] * len(loads)
    if not ebbs:
        return found
    places = [_place(problem, load) for load in loads]
    ends = [end for _, end in places] + [ebb.offset + ebb.nbytes for ebb in ebbs]
    occupants = Occupants(max(ends), _KEPT)
    order = [(load.last_call, index) for index, load in enumerate(loads)]
    order += [(ebb.last_call, index) for index, ebb in enumerate(ebbs, start=len(loads))]
    for _ in range(2):  # the first round knows nothing of the pass before
        for _, index in sorted(order):
            if index < len(loads):
                found[index] = occupants.count(*places[index], _EBBED)
                occupants.occupy(*places[index], _KEPT)
            else:
                ebb = ebbs[index - len(loads)]
                occupants.occupy(ebb.offset, ebb.offset + ebb.nbytes, _EBBED)
    return found


def _place(problem: Problem, load: Load) -> tuple[int, int]:
    """First and past-the-end byte of the whole blocks that `load` fills."""
    block, begin = problem.storage.block_nbytes, load.offset + load.first_byte
    return begin // block * block, -(-(begin + load.nbytes) // block) * block
