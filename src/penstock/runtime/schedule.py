"""A plan and a traced order of calls, bound to a module: what the executor looks up while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from penstock.errors import PlanError
from penstock.planning import Plan, Problem
from penstock.planning.slicing import Cut, Divided, divide
from penstock.runtime.binding import BoundWeight
from penstock.runtime.devices.base import Arena, settled_offset
from penstock.runtime.pipeline import PlannedLoad
from penstock.runtime.slices import WeightSlice

Part = BoundWeight | WeightSlice
"""What a plan calls a weight: all of one, or a slice."""


@dataclass(frozen=True, slots=True)
class BoundLoad:
    """One load with the weight that it serves, the tensor over its bytes, and the other loads of that weight."""

    weight: Part
    data: torch.Tensor
    others: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BoundCall:
    """One layer call: the loads that it holds, and those that it is the last to hold."""

    loads: tuple[int, ...]
    last_use: frozenset[int]


@dataclass(eq=False)
class Site:
    """Where the executor is called: a layer, or one slice of a layer; and the planned calls of it, in order."""

    module: nn.Module
    calls: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class SlicedLayer:
    """A layer that is computed slice by slice: each slice, and its site if it is attended to."""

    module: nn.Module
    parts: tuple[tuple[WeightSlice, Site | None], ...]


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
        layers: the sites that are layers, not slices of one.
        sliced: the layers that are computed slice by slice.
    """

    loads: tuple[BoundLoad, ...]
    planned: tuple[PlannedLoad, ...]
    calls: tuple[BoundCall, ...]
    sites: tuple[Site, ...]
    first_call: tuple[int, ...]
    cold_order: tuple[int, ...]
    warm_order: tuple[int, ...]
    layers: tuple[Site, ...]
    sliced: tuple[SlicedLayer, ...]


NO_SCHEDULE = Schedule((), (), (), (), (), (), (), (), ())


@dataclass(frozen=True)
class DividedModule:
    """A plan's problem, divided by the plan's cuts, and what stands for its numbers in a module.

    Attributes:
        parts: for each weight of `divided.problem`.
        modules: by path.
        moved: weights of `divided.problem` that are moved to an aligned address once they have arrived.
    """

    divided: Divided
    parts: tuple[Part, ...]
    modules: Mapping[str, nn.Module]
    moved: frozenset[int]

    @classmethod
    def of(
        cls,
        problem: Problem,
        cuts: Sequence[Cut],
        weights: Sequence[BoundWeight],
        modules: Mapping[str, nn.Module],
        moved: frozenset[int],
    ) -> DividedModule:
        """The same for `problem`, of whose weights `moved` are moved."""
        divided = divide(problem, cuts)
        cut = {cut.weight for cut in cuts}
        parts = tuple(
            WeightSlice(weights[item.weight], item.begin, item.end) if item.weight in cut else weights[item.weight]
            for item in divided.slices
        )
        # What is equal within rounding only need not lie as it did.
        return cls(
            divided,
            parts,
            modules,
            frozenset(
                index
                for index, (item, part) in enumerate(zip(divided.slices, parts, strict=True))
                if part.whole.must_move or (item.weight in moved and item.weight not in cut)
            ),
        )


def planned_loads(plan: Plan, module: DividedModule) -> tuple[PlannedLoad, ...]:
    """The plan's loads, then its residents, as the pipeline executes them."""
    block = module.divided.problem.storage.block_nbytes
    places = [(load.weight, load.offset, False) for load in plan.loads]
    places += [(slot.weight, slot.offset, True) for slot in plan.resident]
    found = []
    for index, offset, resident in places:
        source = module.parts[index].source
        begin = offset - offset % block
        end = -(-(offset + source.nbytes) // block) * block
        found.append(PlannedLoad(source, offset, begin, end, index in module.moved, resident))
    return tuple(found)


def make_schedule(plan: Plan, module: DividedModule, arena: Arena) -> tuple[Schedule, Schedule]:
    """Bind `plan` to `module` and `arena`: the schedule of the cold pass, and of later ones.

    The cold pass attends to every layer; later ones only to those with streamed weights.

    Raises:
        PlanError: the plan names a module that is not there.
    """
    planned = planned_loads(plan, module)
    bound: list[BoundLoad] = []
    indices = [*(load.weight for load in plan.loads), *(slot.weight for slot in plan.resident)]
    positions: dict[int, list[int]] = {}
    for position, index in enumerate(indices):
        positions.setdefault(index, []).append(position)
    for index, load in zip(indices, planned, strict=True):
        part = module.parts[index]
        others = tuple(position for position in positions[index] if position != len(bound))
        data = arena.tensor(settled_offset(load.offset, realign=load.realign), part.dtype, load.source.shape)
        bound.append(BoundLoad(part, part.laid_out(data), others))
    users = _users(plan, module.divided.problem)
    cold_order = sorted(users, key=lambda load: (users[load][0], load))
    warm = {load: calls for load, calls in users.items() if not planned[load].resident}
    return (
        _schedule(bound, planned, users, module, tuple(cold_order), len(plan.loads)),
        _schedule(bound, planned, warm, module, tuple(cold_order), len(plan.loads)),
    )


def _schedule(
    bound: list[BoundLoad],
    planned: tuple[PlannedLoad, ...],
    users: dict[int, list[int]],
    module: DividedModule,
    cold_order: tuple[int, ...],
    streamed: int,
) -> Schedule:
    calls = module.divided.problem.calls
    final = {load: max(at, key=lambda c: (calls[c].last, -c)) for load, at in users.items()}
    loads_of: dict[int, list[int]] = {}
    for load, at in users.items():
        for call in at:
            loads_of.setdefault(call, []).append(load)
    sites: dict[tuple[str, int | None], Site] = {}
    calls_out: list[BoundCall] = []
    site_out: list[Site] = []
    first_call = [0] * len(planned)
    for call in sorted(loads_of):
        layer = module.divided.layers[call]
        if layer[0] not in module.modules:
            raise PlanError(f"the plan's layer {layer[0]!r} is not in this module: plan again")
        site = sites.setdefault(layer, Site(module.modules[layer[0]]))
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
        tuple(site for (_, part), site in sites.items() if part is None),
        _sliced_layers(module, sites),
    )


def _sliced_layers(module: DividedModule, sites: Mapping[tuple[str, int | None], Site]) -> tuple[SlicedLayer, ...]:
    parts: dict[str, list[int]] = {}
    for path, part in dict.fromkeys(module.divided.layers):  # a layer that is called twice goes through the same slices
        if part is not None:
            parts.setdefault(path, []).append(part)
    found = []
    for path, indices in parts.items():
        slices = ((module.parts[part], sites.get((path, part))) for part in indices)
        found.append(
            SlicedLayer(
                module.modules[path],
                tuple((item, site) for item, site in slices if isinstance(item, WeightSlice)),
            )
        )
    return tuple(found)


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
