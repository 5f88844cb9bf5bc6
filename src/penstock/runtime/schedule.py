"""What the executor looks up while it runs: a plan and its calls, bound to a module."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from penstock.planning.joining import JOINER
from penstock.runtime.binding import BoundWeight
from penstock.runtime.loads import PlannedLoad
from penstock.runtime.pacing import Gates
from penstock.runtime.slices import WeightSlice

Part = BoundWeight | WeightSlice
"""What a plan calls a weight: all of one, or a slice."""


@dataclass(frozen=True, slots=True)
class BoundLoad:
    """One load with the weights that it serves: one, or those that are joined.

    Attributes:
        data: the tensor over each weight's bytes; none where another load, too, is needed for them and has these.
        others: the loads with data of the weight's other stays.
    """

    weights: tuple[Part, ...]
    data: tuple[torch.Tensor, ...]
    others: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the weight, or of all."""
        return JOINER.join(weight.name for weight in self.weights)

    def bind(self) -> None:
        """Let the weights be readable."""
        for weight, data in zip(self.weights, self.data, strict=False):
            weight.bind(data)


@dataclass(frozen=True, slots=True)
class BoundCall:
    """One layer call.

    Attributes:
        loads: that it holds; `last_use` are those that it is the last to hold.
        position: its place in the schedule.
        ebbs: the parts of the arena that are lent while it runs.
    """

    loads: tuple[int, ...]
    last_use: frozenset[int]
    position: int
    ebbs: tuple[int, ...] = ()


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
        loads: bound loads; `planned` are the same loads for the pipeline. Residents come after the streamed ones, and
            behind them, in `planned` only, ebbs.
        calls: the calls that hold loads, in order.
        sites: the site of each call.
        first_call: for each load, its first call.
        cold_order: every load in order of first use.
        warm_order: the streamed loads in plan order.
        layers: the sites that are layers, not slices of one.
        sliced: the layers that are computed slice by slice.
        gates: what loads wait for, if the plan's pacing is that they wait.
        preloads: whether nothing is computed before everything is in memory.
        opening: the ebbs that begin with a pass, before its first call.
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
    gates: Gates
    preloads: bool = False
    opening: tuple[int, ...] = ()


NO_SCHEDULE = Schedule((), (), (), (), (), (), (), (), (), Gates({}, {}))
