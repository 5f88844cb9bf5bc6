"""The plan: data that the runtime executes and that decides everything beforehand.

One arena holds the resident weights, at their addresses for good, and a region that streamed weights share over time. A
pass goes through `loads` in order, and then through them again: the loads of the next pass run on behind those of
this one. See Ji et al., "Demand Layering", RTSS 2022, for the pipeline that this makes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from penstock.errors import PlanError
from penstock.planning.explain import explain
from penstock.planning.fields import Fields, as_integer, as_nbytes, as_seconds, as_text, parse_object
from penstock.planning.joining import Join, read_join
from penstock.planning.problem import Reserve, read_reserve
from penstock.planning.slicing import Cut, read_cut

PLAN_VERSION = 4

EAGER, PLANNED, LOCKSTEP, PRELOAD = "eager", "planned", "lockstep", "preload"
PACINGS = (EAGER, PLANNED, LOCKSTEP, PRELOAD)
"""When loads start. `EAGER`: in order, each as soon as its space is free. `PLANNED`: nor before the call that it names
has ended. `LOCKSTEP`: read, copy and compute go on together, layer by layer, when all three are done. `PRELOAD`: before
the first call, all of them."""


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
        first_byte, nbytes: the part of the weight that it brings, where one stay takes several loads: each but the
            first begins on a block of storage. `offset` is where the weight's first byte is, in all of them.
        staging_offset: where that first byte would be in the staging memory, congruent likewise; 0 without staging.
    """

    weight: int
    offset: int
    first_call: int
    last_call: int
    after_call: int
    after_pass: int
    first_byte: int
    nbytes: int
    staging_offset: int = 0


@dataclass(frozen=True, slots=True)
class Ebb:
    """Part of the arena that activations get while they are large: its memory goes back to the system.

    It begins when call `first_call` does, with the pass if that is the first one, and ends when the call behind
    `last_call` begins, or with the pass. Nothing lies there in between.

    Attributes:
        offset: its first byte in the arena; `nbytes` are from there on. Both are multiples of `Storage.page_nbytes`.
    """

    offset: int
    nbytes: int
    first_call: int
    last_call: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the simulation says of a plan.

    Attributes:
        warm_seconds: one pass in the steady state, passes following one another at once.
        stall_seconds: the part of it in which no call computes.
        cold_seconds: the first pass, everything loaded in order of first use.
        streamed_nbytes: read in a warm pass, whole blocks.
        peak_nbytes: the most that arena, staging and reserve take at one time (see `memory`).
        lower_bound_seconds: what a warm pass of no plan within the budget can beat (see `bounds`).
        cold_bound_seconds: what a first pass of no plan can beat.
        call_stall_seconds: how much of `stall_seconds` is spent before each call, in a late warm pass.
        call_streamed_nbytes: the most bytes of streamed weights that are in the arena during each call of such a pass.
    """

    warm_seconds: float
    stall_seconds: float
    cold_seconds: float
    streamed_nbytes: int
    peak_nbytes: int
    lower_bound_seconds: float
    cold_bound_seconds: float
    call_stall_seconds: tuple[float, ...] = ()
    call_streamed_nbytes: tuple[int, ...] = ()

    @property
    def gap(self) -> float:
        """How much longer a warm pass may be than the best possible: 0.02 for two percent. 0 where nothing computes."""
        bound = self.lower_bound_seconds
        return self.warm_seconds / bound - 1 if bound > 0 else 0.0


@dataclass(frozen=True)
class Plan:
    """A whole plan; weights and calls are named by their index in the problem with `joins`, divided by `cuts`.

    Attributes:
        joins: weights that come together (see `joining`).
        cuts: weights, of those that the joins leave, that come, and are computed with, in slices (see `slicing`).
        pacing: when loads start, one of `PACINGS`.
        staging_nbytes: memory that loads go through on their way to the arena; 0: they go straight there.
        details: what the strategy has to say of this plan, by title.
        arena_nbytes: size of the arena; every extent lies within.
        resident: weights that are loaded once.
        rows: weights of which each call reads its rows by itself.
        loads: in load order, which is the order of first use.
        weight_names, call_names: of the problem, so that a plan can be read, and matched, by itself.
        weight_nbytes: likewise.
        ebbs: where the arena's memory goes to activations for a while, in order of first call.
        call_activations_nbytes: what the pass's own tensors take during each call.
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
    joins: tuple[Join, ...] = ()
    cuts: tuple[Cut, ...] = ()
    pacing: str = EAGER
    staging_nbytes: int = 0
    details: tuple[tuple[str, str], ...] = ()
    call_activations_nbytes: tuple[int, ...] = ()
    ebbs: tuple[Ebb, ...] = ()

    @property
    def ebbed_nbytes(self) -> int:
        """By so much a pass stays below arena, staging and reserve together: the arena ebbs where it needs most."""
        return self.arena_nbytes + self.staging_nbytes + self.reserve.total_nbytes - self.prediction.peak_nbytes

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
        staging_nbytes = fields.integer("staging_nbytes", 0)
        limits = _Limits(len(weight_names), len(call_names), arena_nbytes, staging_nbytes)
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
            joins=fields.items("joins", read_join),
            cuts=fields.items("cuts", read_cut),
            pacing=fields.choice("pacing", PACINGS),
            staging_nbytes=staging_nbytes,
            details=fields.items("details", _read_detail),
            call_activations_nbytes=fields.items("call_activations_nbytes", _as_count),
            ebbs=fields.items("ebbs", limits.read_ebb),
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
    staging_nbytes: int

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
            first_byte=fields.integer("first_byte", 0),
            nbytes=fields.integer("nbytes", 1),
            staging_offset=fields.integer("staging_offset", 0, self.staging_nbytes),
        )
        fields.finish()
        return load

    def read_ebb(self, value: object, path: str) -> Ebb:
        fields = Fields(value, path)
        ebb = Ebb(
            offset=fields.integer("offset", 0, self.arena_nbytes),
            nbytes=fields.integer("nbytes", 1, self.arena_nbytes),
            first_call=fields.integer("first_call", 0, self.call_count - 1),
            last_call=fields.integer("last_call", 0, self.call_count - 1),
        )
        fields.finish()
        return ebb


def _as_count(value: object, path: str) -> int:
    return as_integer(value, path, 0)


def _read_detail(value: object, path: str) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2:
        raise PlanError(f"{path} is not a title and a text: make it again")
    return as_text(value[0], f"{path}[0]"), as_text(value[1], f"{path}[1]")


def _read_prediction(fields: Fields) -> Prediction:
    prediction = Prediction(
        warm_seconds=fields.seconds("warm_seconds"),
        stall_seconds=fields.seconds("stall_seconds"),
        cold_seconds=fields.seconds("cold_seconds"),
        streamed_nbytes=fields.integer("streamed_nbytes", 0),
        peak_nbytes=fields.integer("peak_nbytes", 0),
        lower_bound_seconds=fields.seconds("lower_bound_seconds"),
        cold_bound_seconds=fields.seconds("cold_bound_seconds"),
        call_stall_seconds=fields.items("call_stall_seconds", as_seconds),
        call_streamed_nbytes=fields.items("call_streamed_nbytes", _as_count),
    )
    fields.finish()
    return prediction
