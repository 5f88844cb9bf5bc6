"""Plans with ebbs, made without a strategy: ring placement of what some residents leave."""

from __future__ import annotations

from collections.abc import Collection

from penstock.planning import Plan, Problem
from penstock.planning.ebbs import capacity_nbytes, list_ebbs
from penstock.planning.lifetimes import streamable_uses
from penstock.planning.ring import release_moments
from penstock.planning.strategies.chunks import list_loads, whole
from penstock.planning.strategies.ebbing import Ebbing, Placed, place_ebbing
from penstock.planning.strategies.layout import finish
from penstock.planning.strategies.layout import list_ebbs as list_placed_ebbs


def tables(problem: Problem) -> list[int]:
    """Weights that calls read by rows."""
    read = {weight for call in problem.calls for weight in call.reads}
    return sorted(weight for weight in read if problem.weights[weight].rows_only)


def least_plan(problem: Problem) -> Plan:
    """Everything streams through the least space, and that ebbs where it has to."""
    uses = streamable_uses(problem)
    placed = place_ebbing(problem, uses, [problem.extent_nbytes(use.weight) for use in uses], 0)
    return assemble(problem, "least", (), placed)


def ring_plan(problem: Problem, level_nbytes: int, residents: Collection[int] = ()) -> Plan | None:
    """Residents, and a ring of all that a level of activations leaves room for; None where that finds no space."""
    uses = [use for use in streamable_uses(problem) if use.weight not in residents]
    stays = list_ebbs(problem, level_nbytes)
    extents = [problem.extent_nbytes(use.weight) for use in uses]
    room_nbytes = min((capacity_nbytes(problem, call) for call in range(len(problem.calls))), default=0)
    excess_nbytes = max((call.activations_nbytes for call in problem.calls), default=0) - level_nbytes
    region_nbytes = room_nbytes + max(excess_nbytes, 0) if stays else room_nbytes
    region_nbytes -= sum(problem.extent_nbytes(weight) for weight in residents)
    placed = Ebbing(problem, stays).place_earliest(uses, extents, region_nbytes)
    return None if placed is None else assemble(problem, "ring", residents, placed)


def assemble(problem: Problem, name: str, residents: Collection[int], placed: Placed) -> Plan:
    """The plan in which what was placed comes in one load each."""
    uses, extents, starts = placed
    region_nbytes = max((start + nbytes for start, nbytes in zip(starts, extents, strict=True)), default=0)
    moments = release_moments(uses, extents, starts, region_nbytes, len(problem.calls))
    loads = list_loads(problem, uses, starts, whole(uses, extents, moments))
    ebbs = list_placed_ebbs(uses, extents, starts)
    return finish(problem, name, residents, tables(problem), loads, region_nbytes, ebbs=ebbs)
