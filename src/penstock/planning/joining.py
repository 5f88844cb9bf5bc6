"""Loads above a weight: a problem in which small weights that lie side by side in storage come together.

Each load costs computing a moment, however small it is, and a convolutional network has hundreds of them. Weights that
neighbouring calls read and that neighbour one another in storage may be joined: then they are one weight, which the
calls of all of them read, and which stays from the first of these to the last. Everything else sees an ordinary
problem. What lies between them in storage, such as a bias that is resident, is read along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from penstock.errors import PlanError
from penstock.planning.fields import Fields, as_integer
from penstock.planning.problem import Problem, Weight

JOIN_NBYTES = (4 << 20) - (8 << 10)
"""A join is no longer: with the rest of the blocks at its ends, one read fetches that much."""

JOINER = " + "
"""Between the names of what is joined."""

MOST_MEMBERS = 8
"""A join has no more weights: all of them become readable with each of their layers."""


@dataclass(frozen=True, slots=True)
class Join:
    """Weights that come in one load, ascending by their place in storage."""

    weights: tuple[int, ...]


@dataclass(frozen=True)
class Joined:
    """A problem with joins, and for each of its weights those of the problem without that it is made of."""

    problem: Problem
    members: tuple[tuple[int, ...], ...]


def read_join(value: object, path: str) -> Join:
    """A `Join` out of parsed JSON."""
    fields = Fields(value, path)
    found = Join(weights=fields.items("weights", lambda item, where: as_integer(item, where, 0)))
    fields.finish()
    return found


def joinable(problem: Problem) -> frozenset[int]:
    """Weights that may be joined: in one piece, small, left where they arrive, and read by one call, a leaf."""
    reads = Counter(weight for call in problem.calls for weight in call.reads)
    by_leaves = {weight for index, call in enumerate(problem.calls) if call.last == index for weight in call.reads}
    return frozenset(
        index
        for index, weight in enumerate(problem.weights)
        if weight.file is not None
        and weight.nbytes <= JOIN_NBYTES
        and not (weight.rows_only or weight.is_moved or weight.is_joined)
        and reads[index] == 1
        and index in by_leaves
    )


def join(problem: Problem, joins: Sequence[Join]) -> Joined:
    """`problem` with `joins`. Everything keeps its order, a join at its first weight's place.

    Raises:
        PlanError: a join is not of weights that can be joined, or not in their order in storage.
    """
    if not joins:
        return Joined(problem, tuple((index,) for index in range(len(problem.weights))))
    may_join = joinable(problem)
    join_of: dict[int, Join] = {}
    for item in joins:
        is_sound = 1 < len(item.weights) <= MOST_MEMBERS and may_join.issuperset(item.weights)
        if not is_sound or not join_of.keys().isdisjoint(item.weights):
            raise PlanError(f"weights {item.weights} cannot be joined: make the plan again")
        join_of.update(dict.fromkeys(item.weights, item))
    weights: list[Weight] = []
    members: list[tuple[int, ...]] = []
    position: dict[int, int] = {}
    for index, weight in enumerate(problem.weights):
        if index in position:
            continue
        parts = join_of[index].weights if index in join_of else (index,)
        position.update(dict.fromkeys(parts, len(weights)))
        weights.append(_joined_weight([problem.weights[part] for part in parts]) if len(parts) > 1 else weight)
        members.append(parts)
    calls = tuple(
        replace(call, reads=tuple(dict.fromkeys(position[weight] for weight in call.reads))) for call in problem.calls
    )
    return Joined(replace(problem, weights=tuple(weights), calls=calls), tuple(members))


def _joined_weight(weights: Sequence[Weight]) -> Weight:
    first, last = weights[0], weights[-1]
    for before, after in pairwise(weights):
        if before.file != after.file or before.file_offset + before.nbytes > after.file_offset:
            raise PlanError(f"{before.name} and {after.name} are not in their order in storage: make the plan again")
    nbytes = last.file_offset + last.nbytes - first.file_offset
    if nbytes > JOIN_NBYTES:
        raise PlanError(f"{first.name} to {last.name} are {nbytes} bytes, too many to join: make the plan again")
    return replace(
        first,
        name=JOINER.join(weight.name for weight in weights),
        nbytes=nbytes,
        requests=max(weight.requests for weight in weights),
        rows=1,
        is_joined=True,
    )
