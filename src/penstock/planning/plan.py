"""The plan: data that the runtime executes and that decides everything beforehand.

One arena holds the resident weights, at their addresses for good, and a region that streamed weights share over time. A
pass goes through `loads` in order, and then through them again: the loads of the next pass run on behind those of
this one. See Ji et al., "Demand Layering", RTSS 2022, for the pipeline that this makes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from penstock.planning.explain import explain
from penstock.planning.fields import Fields, as_integer, as_nbytes, as_seconds, as_text, parse_object
from penstock.planning.problem import Reserve, read_reserve

PLAN_VERSION = 1


@dataclass(frozen=True, slots=True)
class Slot:
    """A resident weight: `offset` is its first byte in the arena."""

    weight: int
    offset: int


@dataclass(frozen=True, slots=True)
class Load:
    """One load of a streamed weight in every pass.

    Attributes:
        weight: index of the weight.
        offset: its first byte in the arena, congruent to its first byte in storage.
        first_call: the first call that reads it.
        last_call: it is released when this call has ended.
        after_call: it may start when this call has ended: then its space has been released.
        after_pass: of which pass: 0 this one, -1 the one before. -1 for `after_call` with pass 0: no condition.
    """

    weight: int
    offset: int
    first_call: int
    last_call: int
    after_call: int
    after_pass: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the simulation says of a plan.

    Attributes:
        warm_seconds: one pass in the steady state, passes following one another at once.
        stall_seconds: the part of it in which no call computes.
        cold_seconds: the first pass, everything loaded in order of first use.
        streamed_nbytes: read in a warm pass, whole blocks.
        peak_nbytes: arena and reserve.
        lower_bound_seconds: the larger of compute time and `streamed_nbytes` over the bandwidth.
        call_stall_seconds: how much of `stall_seconds` is spent before each call, in a late warm pass.
    """

    warm_seconds: float
    stall_seconds: float
    cold_seconds: float
    streamed_nbytes: int
    peak_nbytes: int
    lower_bound_seconds: float
    call_stall_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A whole plan; weights and calls are named by their index in the problem.

    Attributes:
        arena_nbytes: size of the arena; every extent lies within.
        resident: weights that are loaded once.
        rows: weights of which each call reads its rows by itself.
        loads: in load order, which is the order of first use.
        weight_names, call_names: of the problem, so that a plan can be read, and matched, by itself.
        weight_nbytes: likewise.
    """

    version: int
    strategy: str
    problem_fingerprint: str
    budget_nbytes: int
    reserve: Reserve
    arena_nbytes: int
    resident: tuple[Slot, ...]
    rows: tuple[int, ...]
    loads: tuple[Load, ...]
    prediction: Prediction
    weight_names: tuple[str, ...]
    call_names: tuple[str, ...]
    weight_nbytes: tuple[int, ...] = ()

    def to_json(self) -> str:
        """This plan as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The plan in `text`, which may come from anywhere. Whether it is right for a problem, `check` says.

        Raises:
            PlanError: a field is missing, unknown, of a wrong type or out of range; the message names it.
        """
        fields = parse_object(text, "plan")
        version = fields.integer("version", PLAN_VERSION, PLAN_VERSION)
        weight_names = fields.items("weight_names", as_text)
        call_names = fields.items("call_names", as_text)
        arena_nbytes = fields.integer("arena_nbytes", 0)
        limits = _Limits(len(weight_names), len(call_names), arena_nbytes)
        plan = cls(
            version=version,
            strategy=fields.text("strategy"),
            problem_fingerprint=fields.text("problem_fingerprint"),
            budget_nbytes=fields.integer("budget_nbytes", 1),
            reserve=read_reserve(fields.record("reserve")),
            arena_nbytes=arena_nbytes,
            resident=fields.items("resident", limits.read_slot),
            rows=fields.items("rows", limits.read_weight),
            loads=fields.items("loads", limits.read_load),
            prediction=_read_prediction(fields.record("prediction")),
            weight_names=weight_names,
            call_names=call_names,
            weight_nbytes=fields.items("weight_nbytes", as_nbytes),
        )
        fields.finish()
        return plan

    def explain(self) -> str:
        """This plan as text for people."""
        return explain(self)


@dataclass(frozen=True, slots=True)
class _Limits:
    """Ranges of the indices and offsets in a plan that is being read."""

    weight_count: int
    call_count: int
    arena_nbytes: int

    def read_weight(self, value: object, path: str) -> int:
        return as_integer(value, path, 0, self.weight_count - 1)

    def read_slot(self, value: object, path: str) -> Slot:
        fields = Fields(value, path)
        slot = Slot(
            weight=fields.integer("weight", 0, self.weight_count - 1),
            offset=fields.integer("offset", 0, self.arena_nbytes),
        )
        fields.finish()
        return slot

    def read_load(self, value: object, path: str) -> Load:
        fields = Fields(value, path)
        load = Load(
            weight=fields.integer("weight", 0, self.weight_count - 1),
            offset=fields.integer("offset", 0, self.arena_nbytes),
            first_call=fields.integer("first_call", 0, self.call_count - 1),
            last_call=fields.integer("last_call", 0, self.call_count - 1),
            after_call=fields.integer("after_call", -1, self.call_count - 1),
            after_pass=fields.integer("after_pass", -1, 0),
        )
        fields.finish()
        return load


def _read_prediction(fields: Fields) -> Prediction:
    prediction = Prediction(
        warm_seconds=fields.seconds("warm_seconds"),
        stall_seconds=fields.seconds("stall_seconds"),
        cold_seconds=fields.seconds("cold_seconds"),
        streamed_nbytes=fields.integer("streamed_nbytes", 0),
        peak_nbytes=fields.integer("peak_nbytes", 0),
        lower_bound_seconds=fields.seconds("lower_bound_seconds"),
        call_stall_seconds=fields.items("call_stall_seconds", as_seconds),
    )
    fields.finish()
    return prediction
