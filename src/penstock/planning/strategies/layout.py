"""From a choice of residents to a whole plan: where everything lies and what every load waits for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from penstock.planning.ebbs import NOTHING
from penstock.planning.lifetimes import Use
from penstock.planning.plan import EAGER, PLAN_VERSION, Ebb, Load, Plan, Prediction, Slot
from penstock.planning.problem import Problem
from penstock.planning.ring import place_alternating, place_earliest, place_stack, release_moments
from penstock.planning.simulate import predict
from penstock.planning.strategies.chunks import list_loads as load_chunks
from penstock.planning.strategies.chunks import whole


@dataclass(frozen=True, slots=True)
class Layout:
    """Addresses and release moments (see `ring`) of streamed uses within a region of the arena."""

    uses: Sequence[Use]
    starts: Sequence[int]
    moments: Sequence[int]
    region_nbytes: int


def lay_out(uses: Sequence[Use], extents: Sequence[int], region_nbytes: int, call_count: int) -> Layout | None:
    """Place uses where space is released first; None where that finds no space."""
    starts = place_earliest(uses, extents, region_nbytes, call_count)
    if starts is None:
        return None
    return _release(uses, extents, starts, call_count)


def lay_out_least(uses: Sequence[Use], extents: Sequence[int], call_count: int) -> Layout:
    """Place uses, which must nest, in the least space that they can have."""
    return _release(uses, extents, place_stack(uses, extents), call_count)


def lay_out_alternating(uses: Sequence[Use], extents: Sequence[int], region_nbytes: int, call_count: int) -> Layout:
    """Place uses, which must nest, by turns at the two ends of a region in which any two successive layers fit."""
    return _release(uses, extents, place_alternating(uses, extents, region_nbytes), call_count)


def _release(uses: Sequence[Use], extents: Sequence[int], starts: Sequence[int], call_count: int) -> Layout:
    region_nbytes = max((start + nbytes for start, nbytes in zip(starts, extents, strict=True)), default=0)
    moments = release_moments(uses, extents, starts, region_nbytes, call_count)
    return Layout(uses, starts, moments, region_nbytes)


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
    )


def list_loads(problem: Problem, layout: Layout) -> list[Load]:
    """One load for each use."""
    chunks = whole(layout.uses, [problem.extent_nbytes(use.weight) for use in layout.uses], layout.moments)
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
