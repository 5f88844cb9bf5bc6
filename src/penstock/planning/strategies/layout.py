"""From a choice of residents to a whole plan: where everything lies and what every load waits for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from penstock.planning.ebbs import NOTHING, EbbStay
from penstock.planning.lifetimes import Use
from penstock.planning.plan import EAGER, PLAN_VERSION, Ebb, Load, Plan, Prediction, Slot
from penstock.planning.problem import Problem
from penstock.planning.ring import place_alternating, place_earliest, place_stack, release_moments
from penstock.planning.simulate import predict
from penstock.planning.strategies.chunks import Chunk
from penstock.planning.strategies.chunks import list_loads as load_chunks
from penstock.planning.strategies.ebbing import Ebbing, place_ebbing


@dataclass(frozen=True, slots=True)
class Layout:
    """Addresses and release moments (see `ring`) of streamed uses, and of ebbs, within a region of the arena.

    Attributes:
        ebbs: those among the uses whose weight is `ebbs.NOTHING`.
    """

    uses: Sequence[Use]
    starts: Sequence[int]
    moments: Sequence[int]
    region_nbytes: int
    ebbs: Sequence[Ebb] = ()


def lay_out(uses: Sequence[Use], extents: Sequence[int], region_nbytes: int, call_count: int) -> Layout | None:
    """Place uses where space is released first; None where that finds no space."""
    starts = place_earliest(uses, extents, region_nbytes, call_count)
    if starts is None:
        return None
    return _release(uses, extents, starts, call_count)


def lay_out_least(uses: Sequence[Use], extents: Sequence[int], call_count: int) -> Layout:
    """Place uses, which must nest, in the least space that they can have."""
    return _release(uses, extents, place_stack(uses, extents), call_count)


def lay_out_around(
    problem: Problem, uses: Sequence[Use], extents: Sequence[int], region_nbytes: int, stays: Sequence[EbbStay]
) -> Layout | None:
    """Place uses where space is released first, below what ebbs of the region's upper end; None if there is no space.

    Of the region, whole pages count.
    """
    placed = Ebbing(problem, stays).place_earliest(uses, extents, region_nbytes)
    return None if placed is None else _release(*placed, len(problem.calls))


def lay_out_ebbing(
    problem: Problem, uses: Sequence[Use], extents: Sequence[int], *, resident_nbytes: int = 0
) -> Layout:
    """Place uses, which must nest, in the least space, and let what is free above them ebb where activations need it.

    Works for all streamable uses in any budget from `ebbs.needed_nbytes` on, beside residents in so much more.
    """
    return _release(*place_ebbing(problem, uses, extents, resident_nbytes), len(problem.calls))


def lay_out_alternating(uses: Sequence[Use], extents: Sequence[int], region_nbytes: int, call_count: int) -> Layout:
    """Place uses, which must nest, by turns at the two ends of a region in which any two successive layers fit."""
    return _release(uses, extents, place_alternating(uses, extents, region_nbytes), call_count)


def _release(uses: Sequence[Use], extents: Sequence[int], starts: Sequence[int], call_count: int) -> Layout:
    region_nbytes = max((start + nbytes for start, nbytes in zip(starts, extents, strict=True)), default=0)
    moments = release_moments(uses, extents, starts, region_nbytes, call_count)
    return Layout(uses, starts, moments, region_nbytes, list_ebbs(uses, extents, starts))


def list_ebbs(uses: Sequence[Use], extents: Sequence[int], starts: Sequence[int]) -> list[Ebb]:
    """The ebbs among placed uses."""
    placed = zip(uses, starts, extents, strict=True)
    return [Ebb(start, nbytes, use.first, use.last) for use, start, nbytes in placed if use.weight == NOTHING]


def assemble(problem: Problem, strategy: str, residents: Collection[int], rows: Sequence[int], layout: Layout) -> Plan:
    """The plan that streams what `layout` places, each weight in one load, as early as its space allows."""
    return finish(
        problem,
        strategy,
        residents,
        rows,
        list_loads(problem, layout),
        layout.region_nbytes,
        ebbs=layout.ebbs,
    )


def list_loads(problem: Problem, layout: Layout) -> list[Load]:
    """One load for each use that is no ebb."""
    chunks = [
        Chunk(index, 0, problem.extent_nbytes(use.weight), moment)
        for index, (use, moment) in enumerate(zip(layout.uses, layout.moments, strict=True))
        if use.weight != NOTHING
    ]
    return load_chunks(problem, layout.uses, layout.starts, chunks)


def finish(
    problem: Problem,
    strategy: str,
    residents: Collection[int],
    rows: Sequence[int],
    loads: Sequence[Load],
    region_nbytes: int,
    *,
    pacing: str = EAGER,
    staging_nbytes: int = 0,
    details: Sequence[tuple[str, str]] = (),
    ebbs: Sequence[Ebb] = (),
) -> Plan:
    """The plan: the streaming region at the arena's begin, residents behind it in order of first use."""
    slots = []
    end = region_nbytes
    for weight in dict.fromkeys(weight for call in problem.calls for weight in call.reads):
        if weight in residents:
            slots.append(Slot(weight, end + problem.weights[weight].offset_in_block))
            end += problem.extent_nbytes(weight)
    plan = Plan(
        version=PLAN_VERSION,
        strategy=strategy,
        problem_fingerprint=problem.fingerprint,
        budget_nbytes=problem.budget_nbytes,
        reserve=problem.reserve,
        arena_nbytes=end,
        resident=tuple(slots),
        rows=tuple(rows),
        loads=tuple(loads),
        prediction=Prediction(0.0, 0.0, 0.0, 0, 0, 0.0, 0.0),
        weight_names=tuple(weight.name for weight in problem.weights),
        call_names=tuple(call.name for call in problem.calls),
        weight_nbytes=tuple(weight.nbytes for weight in problem.weights),
        pacing=pacing,
        staging_nbytes=staging_nbytes,
        details=tuple(details),
        call_activations_nbytes=tuple(call.activations_nbytes for call in problem.calls),
        ebbs=tuple(ebbs),
    )
    return replace(plan, prediction=predict(problem, plan))
