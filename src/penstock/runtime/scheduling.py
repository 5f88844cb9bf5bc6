"""From a plan to schedules: its loads and calls bound to a module's weights and layers, and to an arena."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from penstock.checkpoint import WeightSource
from penstock.errors import PlanError
from penstock.planning import Load, Plan, Problem
from penstock.planning.joining import join
from penstock.planning.plan import EAGER, LOCKSTEP, PLANNED, PRELOAD
from penstock.planning.slicing import Divided, divide
from penstock.runtime.binding import BoundWeight
from penstock.runtime.devices.base import Arena, settled_offset
from penstock.runtime.loads import PlannedLoad, begin_of, part_of, spanning
from penstock.runtime.pacing import Gates
from penstock.runtime.schedule import BoundCall, BoundLoad, Part, Schedule, Site, SlicedLayer
from penstock.runtime.slices import WeightSlice


@dataclass(frozen=True)
class DividedModule:
    """A plan's problem, divided by the plan's cuts, and what stands for its numbers in a module.

    Attributes:
        parts: for each weight of `divided.problem`; several where they are joined, in their order in storage.
        modules: by path.
        moved: weights of `divided.problem` that are moved to an aligned address once they have arrived.
    """

    divided: Divided
    parts: tuple[tuple[Part, ...], ...]
    modules: Mapping[str, nn.Module]
    moved: frozenset[int]

    @classmethod
    def of(
        cls,
        problem: Problem,
        plan: Plan,
        weights: Sequence[BoundWeight],
        modules: Mapping[str, nn.Module],
        moved: frozenset[int],
    ) -> DividedModule:
        """The same for `problem`, of whose weights `moved` are moved, as `plan` divides it."""
        joined = join(problem, plan.joins)
        divided = divide(joined.problem, plan.cuts)
        cut = {cut.weight for cut in plan.cuts}
        parts: list[tuple[Part, ...]] = []
        all_moved = set()
        for index, item in enumerate(divided.slices):
            wholes = tuple(weights[member] for member in joined.members[item.weight])
            is_cut = item.weight in cut  # what is equal within rounding only need not lie as it did
            parts.append((WeightSlice(wholes[0], item.begin, item.end),) if is_cut else wholes)
            is_moved = not moved.isdisjoint(joined.members[item.weight])
            if any(whole.must_move for whole in wholes) or (is_moved and not is_cut):
                if len(wholes) > 1:
                    raise PlanError(f"{wholes[0].name} is moved once it is there, and joined with others: plan again")
                all_moved.add(index)
        return cls(divided, tuple(parts), modules, frozenset(all_moved))

    def source(self, weight: int) -> WeightSource:
        """The bytes of a weight of `divided.problem`, as one."""
        parts = self.parts[weight]
        return parts[0].source if len(parts) == 1 else spanning([part.source for part in parts])


def planned_loads(plan: Plan, module: DividedModule) -> tuple[PlannedLoad, ...]:
    """The plan's loads, then its residents, then its ebbs, as the pipeline executes them."""
    found = [_planned(plan, module, load) for load in plan.loads]
    for slot in plan.resident:
        source = module.source(slot.weight)
        extent = _extent(module, slot.offset, source.nbytes)
        found.append(PlannedLoad(source, slot.offset, *extent, slot.weight in module.moved, resident=True))
    return (*found, *(PlannedLoad.ebb(ebb.offset, ebb.nbytes) for ebb in plan.ebbs))


def _planned(plan: Plan, module: DividedModule, load: Load) -> PlannedLoad:
    source = module.source(load.weight)
    if load.nbytes < source.nbytes:
        source = part_of(source, load.first_byte, load.nbytes)
    offset, staging_offset = load.offset + load.first_byte, load.staging_offset + load.first_byte
    return PlannedLoad(
        source,
        offset,
        *_extent(module, offset, load.nbytes),
        load.weight in module.moved,
        staging_offset=staging_offset if plan.staging_nbytes else None,
    )


def _extent(module: DividedModule, offset: int, nbytes: int) -> tuple[int, int]:
    block = module.divided.problem.storage.block_nbytes
    return offset - offset % block, -(-(offset + nbytes) // block) * block


def make_schedule(plan: Plan, module: DividedModule, arena: Arena) -> tuple[Schedule, Schedule]:
    """Bind `plan` to `module` and `arena`: the schedule of the cold pass, and of later ones.

    The cold pass attends to every layer; later ones only to those with streamed weights.

    Raises:
        PlanError: the plan names a module that is not there.
    """
    binder = _Binder(plan, module, planned_loads(plan, module), _bound_loads(plan, module, arena))
    return binder.schedule(binder.users), binder.schedule(binder.streamed_users())


def _bound_loads(plan: Plan, module: DividedModule, arena: Arena) -> tuple[BoundLoad, ...]:
    # Of the loads of one stay, the one that brings the weight's begin has the tensor.
    places = [(load.weight, load.offset, load.first_byte == 0) for load in plan.loads]
    places += [(slot.weight, slot.offset, True) for slot in plan.resident]
    positions: dict[int, list[int]] = {}
    for position, (weight, _, has_data) in enumerate(places):
        if has_data:
            positions.setdefault(weight, []).append(position)
    bound = []
    for position, (weight, offset, has_data) in enumerate(places):
        parts = module.parts[weight]
        data: tuple[torch.Tensor, ...] = ()
        if has_data:
            settled = settled_offset(offset, realign=weight in module.moved)
            begins = [settled + distance for distance in _distances(parts)]
            data = tuple(
                part.laid_out(arena.tensor(begin, part.dtype, part.source.shape))
                for part, begin in zip(parts, begins, strict=True)
            )
        bound.append(BoundLoad(parts, data, tuple(other for other in positions[weight] if other != position)))
    return tuple(bound)


def _distances(parts: Sequence[Part]) -> list[int]:
    """How far from the first part's first byte each one's lies."""
    if len(parts) == 1:
        return [0]
    begins = [begin_of(part.source) for part in parts]
    return [begin - begins[0] for begin in begins]


class _Binder:
    """Makes the schedules of one plan, which differ in the calls that they attend to."""

    def __init__(
        self, plan: Plan, module: DividedModule, planned: tuple[PlannedLoad, ...], bound: tuple[BoundLoad, ...]
    ) -> None:
        self._plan, self._module, self._planned, self._bound = plan, module, planned, bound
        self.users = _users(plan, module.divided.problem)
        self._cold_order = self._order()
        self._gated = frozenset(gated_loads(plan, planned))

    def streamed_users(self) -> dict[int, list[int]]:
        """The users of what comes in every pass."""
        return {load: calls for load, calls in self.users.items() if not self._planned[load].resident}

    def _order(self) -> tuple[int, ...]:
        """Every load in order of first use; those of the plan stay in its order, which may be ahead of that."""
        due = {load: calls[0] for load, calls in self.users.items()}
        before = len(self._module.divided.problem.calls)
        for load in reversed([load for load in due if not self._planned[load].resident]):
            before = due[load] = min(before, due[load])
        return tuple(sorted(due, key=lambda load: (due[load], load)))

    def schedule(self, users: dict[int, list[int]]) -> Schedule:
        """What attends to the calls among `users`, by load, and to those that loads have to wait for."""
        held = self._held_by_call(users)
        positions = {call: position for position, call in enumerate(held)}
        calls = self._module.divided.problem.calls
        final = {load: max(at, key=lambda c: (calls[c].last, -c)) for load, at in users.items()}
        sites: dict[tuple[str, int | None], Site] = {}
        site_of_call = []
        for call, position in positions.items():
            layer = self._module.divided.layers[call]
            if layer[0] not in self._module.modules:
                raise PlanError(f"the plan's layer {layer[0]!r} is not in this module: plan again")
            site = sites.setdefault(layer, Site(self._module.modules[layer[0]]))
            site.calls.append(position)
            site_of_call.append(site)
        return Schedule(
            self._bound,
            self._planned,
            tuple(
                BoundCall(
                    tuple(loads),
                    frozenset(load for load in loads if final[load] == call),
                    positions[call],
                    self._ebbs_at(call),
                )
                for call, loads in held.items()
            ),
            tuple(site_of_call),
            tuple(positions[users[load][0]] if load in users else 0 for load in range(len(self._planned))),
            self._cold_order,
            tuple(load for load in range(len(self._plan.loads)) if load in users),
            tuple(site for (_, part), site in sites.items() if part is None),
            _sliced_layers(self._module, sites),
            self._gates(users, positions),
            self._plan.pacing == PRELOAD,
            self._ebbs_at(0),
        )

    def _ebbs_at(self, call: int) -> tuple[int, ...]:
        first = len(self._planned) - len(self._plan.ebbs)
        return tuple(
            index for index, ebb in enumerate(self._plan.ebbs, start=first) if ebb.first_call <= call <= ebb.last_call
        )

    def _held_by_call(self, users: dict[int, list[int]]) -> dict[int, list[int]]:
        """The loads that each call holds, ascending, by call, ascending; others hold none, but time what others do."""
        held: dict[int, list[int]] = {self._plan.loads[load].after_call: [] for load in self._gated}
        call_count = len(self._module.divided.problem.calls)
        for ebb in self._plan.ebbs:  # and the call behind it, with which it ends
            held.update((call, []) for call in range(ebb.first_call, min(ebb.last_call + 2, call_count)))
        for load in sorted(users):
            for call in users[load]:
                held.setdefault(call, []).append(load)
        return dict(sorted(held.items()))

    def _gates(self, users: dict[int, list[int]], positions: Mapping[int, int]) -> Gates:
        after: dict[int, tuple[int, int]] = {}
        layers: dict[int, tuple[int, ...]] = {}
        for index, load in enumerate(self._plan.loads):
            if index in self._gated:
                after[index] = (positions[load.after_call], load.after_pass)
            if self._plan.pacing == LOCKSTEP:
                first = positions[users[index][0]]
                layers[first] = (*layers.get(first, ()), index)
        return Gates(after, dict(sorted(layers.items())))


def gated_loads(plan: Plan, planned: Sequence[PlannedLoad]) -> Iterator[int]:
    """The loads that have to wait for the call that the plan names, though their places may be free before.

    Of an eager plan, those that share their place with an ebb: it lies empty between what was there before and the ebb,
    and is not to be filled then.
    """
    for index, load in enumerate(plan.loads):
        extent = planned[index]
        shares = any(
            ebb.offset < extent.extent_end and extent.extent_begin < ebb.offset + ebb.nbytes for ebb in plan.ebbs
        )
        if load.after_call >= 0 and (plan.pacing == PLANNED or (plan.pacing == EAGER and shares)):
            yield index


def _sliced_layers(module: DividedModule, sites: Mapping[tuple[str, int | None], Site]) -> tuple[SlicedLayer, ...]:
    parts: dict[str, list[int]] = {}
    for path, part in dict.fromkeys(module.divided.layers):  # a layer that is called twice goes through the same slices
        if part is not None:
            parts.setdefault(path, []).append(part)
    found = []
    for path, indices in parts.items():
        slices = ((module.parts[part][0], sites.get((path, part))) for part in indices)
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
        held = [call for call in readers[load.weight] if load.first_call <= call <= load.last_call]
        if load.first_call not in held:  # it comes with the weights of a block's first layer, and goes with its last's
            held.insert(0, load.first_call)
        if all(problem.calls[call].last < load.last_call for call in held):
            held.append(load.last_call)
        users[position] = held
    for position, slot in enumerate(plan.resident, start=len(plan.loads)):
        users[position] = readers.get(slot.weight, [])
    return {load: calls for load, calls in users.items() if calls}
