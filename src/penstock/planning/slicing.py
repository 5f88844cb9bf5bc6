"""Weights below a layer: a problem in which large weights are divided into slices.

A slice is some of a weight's rows. A layer that can be computed slice by slice (see `Weight.rows`) becomes a call that
holds what it needs throughout, and within it one call for each slice. Everything else sees an ordinary problem: a slice
is a weight, and may stay, stream, or be loaded while the slice before it is computed. FlexNN (Li et al., MobiCom 2024)
slices layers so on phones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from penstock.errors import PlanError
from penstock.planning.fields import Fields, as_integer
from penstock.planning.joining import Join, join
from penstock.planning.problem import Call, Problem, Weight

SLICE_NBYTES = 1 << 20
"""Slices are no smaller, if that can be: a read of less takes as long as one of so much."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where one weight is divided: `rows` are the first rows of its second and later slices, ascending."""

    weight: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `begin` to `end` (excluded) of weight `weight` of the problem that is divided: all where it is whole."""

    weight: int
    begin: int
    end: int


@dataclass(frozen=True)
class Divided:
    """A divided problem, and where its parts come from.

    Attributes:
        problem: with a weight for each slice, and a call for each slice of a sliced layer.
        slices: for each of its weights, what it is of the undivided problem.
        layers: for each of its calls, the name of the undivided problem's, and which weight of the divided one is the
            slice that it computes with; None where it is no slice of a call.
    """

    problem: Problem
    slices: tuple[Slice, ...]
    layers: tuple[tuple[str, int | None], ...]


def read_cut(value: object, path: str) -> Cut:
    """A `Cut` out of parsed JSON."""
    fields = Fields(value, path)
    cut = Cut(
        weight=fields.integer("weight", 0),
        rows=fields.items("rows", lambda item, where: as_integer(item, where, 1)),
    )
    fields.finish()
    return cut


def divide(problem: Problem, cuts: Sequence[Cut]) -> Divided:
    """`problem` with the weights of `cuts` in slices. Everything keeps its order; without cuts nothing changes.

    Raises:
        PlanError: a cut is not one of a weight that can be sliced.
    """
    rows_of = {cut.weight: (0, *cut.rows, _rows(problem, cut)) for cut in cuts}
    if len(rows_of) != len(cuts):
        raise PlanError("a weight is cut twice: name all of its cuts in one")
    slices: list[Slice] = []
    positions: list[range] = []  # of each weight's parts
    for index, weight in enumerate(problem.weights):
        bounds = rows_of.get(index, (0, weight.rows))
        positions.append(range(len(slices), len(slices) + len(bounds) - 1))
        slices.extend(Slice(index, begin, end) for begin, end in pairwise(bounds))
    weights = [_slice_weight(problem, item, positions[item.weight]) for item in slices]
    calls, layers = _divide_calls(problem, slices, positions)
    return Divided(replace(problem, weights=tuple(weights), calls=calls), tuple(slices), layers)


def as_planned(problem: Problem, joins: Sequence[Join], cuts: Sequence[Cut]) -> Problem:
    """`problem` as a plan with `joins` and, of what they leave, `cuts` numbers its weights and calls."""
    joined = join(problem, joins).problem
    return divide(joined, cuts).problem if cuts else joined


def finest_extent_nbytes(problem: Problem, weight: int) -> int:
    """The arena that the largest slice of `weight` takes when it is cut as finely as can be."""
    item, block = problem.weights[weight], problem.storage.block_nbytes
    row_nbytes = item.nbytes // item.rows
    largest_nbytes = -(-item.rows // slice_limit(item)) * row_nbytes
    if largest_nbytes == item.nbytes:
        return problem.extent_nbytes(weight)
    return -(-(largest_nbytes + block - 1) // block) * block  # wherever in its block it begins


def slice_limit(weight: Weight) -> int:
    """The most slices that `weight` is cut into."""
    return max(1, min(weight.rows, weight.nbytes // SLICE_NBYTES))


def cut_evenly(weight: Weight, index: int, count: int) -> Cut:
    """`weight`, which is number `index`, in `count` slices that differ by a row at most in size."""
    return Cut(index, tuple(weight.rows * part // count for part in range(1, count)))


def _rows(problem: Problem, cut: Cut) -> int:
    """How many rows the weight of `cut` has, which is sound."""
    if not 0 <= cut.weight < len(problem.weights):
        raise PlanError(f"weight {cut.weight} of {len(problem.weights)} is cut: make the plan again")
    weight = problem.weights[cut.weight]
    bounds = (0, *cut.rows, weight.rows)
    if not cut.rows or any(begin >= end for begin, end in pairwise(bounds)):
        raise PlanError(f"{weight.name} of {weight.rows} rows is cut at {cut.rows}: make the plan again")
    return weight.rows


def _slice_weight(problem: Problem, item: Slice, parts: range) -> Weight:
    weight = problem.weights[item.weight]
    if len(parts) == 1:
        return weight
    row_nbytes = weight.nbytes // weight.rows
    nbytes = (item.end - item.begin) * row_nbytes
    return replace(
        weight,
        name=f"{weight.name}[{item.begin}:{item.end}]",
        nbytes=nbytes,
        offset_in_block=(weight.offset_in_block + item.begin * row_nbytes) % problem.storage.block_nbytes,
        file=None,
        file_offset=0,
        requests=-(-weight.requests * nbytes // weight.nbytes),
        rows=1,
    )


def _divide_calls(
    problem: Problem, slices: Sequence[Slice], positions: Sequence[range]
) -> tuple[tuple[Call, ...], tuple[tuple[str, int | None], ...]]:
    def parts_of(call: Call) -> range:
        return next((positions[weight] for weight in call.reads if len(positions[weight]) > 1), range(0))

    # A call that is divided takes one place for what it holds throughout and one for each slice.
    places = list(accumulate((1 + len(parts_of(call)) for call in problem.calls), initial=0))
    calls: list[Call] = []
    layers: list[tuple[str, int | None]] = []
    for call in problem.calls:
        parts = parts_of(call)
        kept = tuple(positions[weight][0] for weight in call.reads if len(positions[weight]) == 1)
        whole = 0.0 if parts else 1.0
        calls.append(replace(_part_of(call, whole), reads=kept, last=places[call.last + 1] - 1))
        layers.append((call.name, None))
        for part in parts:
            name = f"{call.name}[{slices[part].begin}:{slices[part].end}]"
            item = _part_of(call, _share(slices, parts, part))
            seconds = item.seconds + problem.slice_seconds
            calls.append(replace(item, name=name, seconds=seconds, reads=(part,), last=len(calls)))
            layers.append((call.name, part))
    return tuple(calls), tuple(layers)


def _part_of(call: Call, share: float) -> Call:
    load_nbytes = None if call.load_nbytes is None else int(call.load_nbytes * share)
    return replace(call, seconds=call.seconds * share, load_nbytes=load_nbytes)


def _share(slices: Sequence[Slice], parts: Iterable[int], part: int) -> float:
    rows = sum(slices[other].end - slices[other].begin for other in parts)
    return (slices[part].end - slices[part].begin) / rows
