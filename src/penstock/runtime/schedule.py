"""A plan and a traced order of calls, bound to a module: what the executor looks up while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from penstock.errors import PlanError
from penstock.planning import Plan, Problem
from penstock.runtime.binding import BoundWeight
from penstock.runtime.devices.base import Arena, settled_offset
from penstock.runtime.pipeline import PlannedLoad


@dataclass(frozen=True, slots=True)
class BoundLoad:
    """One load with the weight that it serves, the tensor over its bytes, and the other loads of that weight."""

    weight: BoundWeight
    data: torch.Tensor
    others: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BoundCall:
    """One layer call: the loads that it holds, and those that it is the last to hold."""

    loads: tuple[int, ...]
    last_use: frozenset[int]


@dataclass(eq=False)
class Site:
    """A module whose calls are attended to, and the calls that are planned for it, in order."""

    module: nn.Module
    calls: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """Everything about one plan that the executor needs, by position.

    Attributes:
        loads: bound loads; `planned` are the same loads for the pipeline. Residents come after the streamed ones.
        calls: the calls that hold loads, in order.
        sites: the site of each call.
        first_call: for each load, its first call.
        cold_order: every load in order of first use.
        warm_order: the streamed loads in plan order.
    """

    loads: tuple[BoundLoad, ...]
    planned: tuple[PlannedLoad, ...]
    calls: tuple[BoundCall, ...]
    sites: tuple[Site, ...]
    first_call: tuple[int, ...]
    cold_order: tuple[int, ...]
    warm_order: tuple[int, ...]


def planned_loads(
    plan: Plan, problem: Problem, weights: Sequence[BoundWeight], realign: frozenset[int]
) -> tuple[PlannedLoad, ...]:
    """The plan's loads, then its residents, as the pipeline executes them."""
    block = problem.storage.block_nbytes
    places = [(load.weight, load.offset, False) for load in plan.loads]
    places += [(slot.weight, slot.offset, True) for slot in plan.resident]
    found = []
    for index, offset, resident in places:
        source = weights[index].source
        begin = offset - offset % block
        end = -(-(offset + source.nbytes) // block) * block
        found.append(PlannedLoad(source, offset, begin, end, index in realign, resident))
    return tuple(found)


def make_schedule(
    plan: Plan,
    problem: Problem,
    weights: Sequence[BoundWeight],
    modules: dict[str, nn.Module],
    arena: Arena,
    realign: frozenset[int],
) -> tuple[Schedule, Schedule]:
    """Bind `plan` to `weights`, `modules` (by path) and `arena`: the schedule of the cold pass, and of later ones.

    The cold pass attends to every layer; later ones only to those with streamed weights.

    Raises:
        PlanError: the plan names a module that is not there.
    """
    planned = planned_loads(plan, problem, weights, realign)
    bound: list[BoundLoad] = []
    indices = [*(load.weight for load in plan.loads), *(slot.weight for slot in plan.resident)]
    positions: dict[int, list[int]] = {}
    for position, index in enumerate(indices):
        positions.setdefault(index, []).append(position)
    for index, load in zip(indices, planned, strict=True):
        weight = weights[index]
        others = tuple(position for position in positions[index] if position != len(bound))
        data = arena.tensor(settled_offset(load.offset, realign=load.realign), weight.hollow.dtype, load.source.shape)
        bound.append(BoundLoad(weight, weight.laid_out(data), others))
    users = _users(plan, problem)
    cold_order = sorted(users, key=lambda load: (users[load][0], load))
    warm = {load: calls for load, calls in users.items() if not planned[load].resident}
    return (
        _schedule(bound, planned, users, problem, modules, tuple(cold_order), len(plan.loads)),
        _schedule(bound, planned, warm, problem, modules, tuple(cold_order), len(plan.loads)),
    )


def _schedule(
    bound: list[BoundLoad],
    planned: tuple[PlannedLoad, ...],
    users: dict[int, list[int]],
    problem: Problem,
    modules: dict[str, nn.Module],
    cold_order: tuple[int, ...],
    streamed: int,
) -> Schedule:
    final = {load: max(calls, key=lambda c: (problem.calls[c].last, -c)) for load, calls in users.items()}
    loads_of: dict[int, list[int]] = {}
    for load, calls in users.items():
        for call in calls:
            loads_of.setdefault(call, []).append(load)
    sites: dict[str, Site] = {}
    calls_out: list[BoundCall] = []
    site_out: list[Site] = []
    first_call = [0] * len(planned)
    for call in sorted(loads_of):
        name = problem.calls[call].name
        if name not in modules:
            raise PlanError(f"the plan's layer {name!r} is not in this module: plan again")
        site = sites.setdefault(name, Site(modules[name]))
        held = tuple(sorted(loads_of[call]))
        for load in held:
            if users[load][0] == call:
                first_call[load] = len(calls_out)
        site.calls.append(len(calls_out))
        site_out.append(site)
        calls_out.append(BoundCall(held, frozenset(load for load in held if final[load] == call)))
    return Schedule(
        tuple(bound),
        planned,
        tuple(calls_out),
        tuple(site_out),
        tuple(first_call),
        cold_order,
        tuple(load for load in range(streamed) if load in users),
    )


def _users(plan: Plan, problem: Problem) -> dict[int, list[int]]:
    """For each load of `planned_loads`, the calls that read it, ascending."""
    readers: dict[int, list[int]] = {}
    for index, call in enumerate(problem.calls):
        for weight in call.reads:
            readers.setdefault(weight, []).append(index)
    users = {}
    for position, load in enumerate(plan.loads):
        users[position] = [c for c in readers[load.weight] if load.first_call <= c <= load.last_call]
    for position, slot in enumerate(plan.resident, start=len(plan.loads)):
        users[position] = readers.get(slot.weight, [])
    return {load: calls for load, calls in users.items() if calls}
