"""What a plan has to solve, in plain numbers: weights, calls in order, storage, budget.

Nothing here knows of modules or files. A problem checks itself when it is made, so the planner need not.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from penstock.errors import PlanError
from penstock.planning.fields import MAX_ITEMS, Fields, as_integer, parse_object
from penstock.planning.kinds import REUSABLE, SLOWDOWNS
from penstock.planning.problem_checks import check_problem

PROBLEM_VERSION = 6


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight as it lies in storage.

    Attributes:
        name: its key in the checkpoint.
        nbytes: its bytes, at least one.
        offset_in_block: its first byte's place in its storage block, in bytes. Its address is congruent to this modulo
            `Storage.block_nbytes`, and it occupies the arena from that block's begin to the end of its last block.
        requests: read requests that fetch it.
        rows_only: calls read a few rows of it (an embedding table): it is loaded only if a plan makes it resident;
            otherwise each use costs `row_seconds` of stall.
        is_moved: its bytes are moved within its place once all of them are there, so one load has to bring them.
        rows: parts of equal size, `nbytes / rows` each, that its layers can compute with one after another; 1 if they
            need all of it at once. See `slicing`.
        file: the number of the file that has it in one piece; None where it is in several.
        file_offset: its first byte there.
        is_joined: it is several weights, and stays from the first call that reads it to the last. See `joining`.
    """

    name: str
    nbytes: int
    offset_in_block: int = 0
    requests: int = 1
    rows_only: bool = False
    row_seconds: float = 0.0
    rows: int = 1
    is_moved: bool = False
    file: int | None = None
    file_offset: int = 0
    is_joined: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One layer call of the recorded pass.

    Attributes:
        name: the module's path.
        seconds: own compute, from this call's begin to the next call's begin, without stalls.
        reads: indices of the weights that it reads.
        last: index of the last call that began before this one ended: its own for a leaf. The weights are held until
            call `last` has ended. Calls nest as a call stack does.
        activations_nbytes: most bytes that the pass's own tensors hold from its begin to the next call's.
        kind: its class, a key of `kinds.SLOWDOWNS`.
        load_nbytes: its load capacity: most bytes that can be loaded while it computes, without slowing it down by more
            than its class may be. None: not measured.
    """

    name: str
    seconds: float
    reads: tuple[int, ...]
    last: int
    activations_nbytes: int = 0
    kind: str = REUSABLE
    load_nbytes: int | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """What a load costs: `requests * request_seconds` plus the bytes of its blocks over `bytes_per_second`.

    Where a plan stages loads, a copy at `copy_bytes_per_second` comes after it. Bytes that lie where the plan has given
    memory back to the system take `1 / regain_bytes_per_second` longer each: pages have to be obtained anew.

    Attributes:
        load_compute_seconds: what computing loses to each load, however small: to start it, and to bind what it brings.
        read_compute_share: what computing loses besides, as a part of the seconds that the load takes: interrupts,
            pages, memory that both use.
        copy_compute_share: what it loses to copies that run beside it, as a part of their seconds: they take a core,
            and kernels on all cores wait for their slowest thread.
        page_nbytes: in multiples of which, counted from the arena's begin, memory can be given back.
    """

    bytes_per_second: float
    request_seconds: float
    block_nbytes: int = 512
    copy_bytes_per_second: float = 1e10
    load_compute_seconds: float = 0.0
    read_compute_share: float = 0.0
    copy_compute_share: float = 0.0
    regain_bytes_per_second: float = 1e10
    page_nbytes: int = 4096

    def lost_seconds(self, load_seconds: float, copy_seconds: float = 0.0) -> float:
        """What computing loses to a load that takes so long, and to a copy beside it."""
        lost = self.load_compute_seconds + self.read_compute_share * load_seconds
        return lost + self.copy_compute_share * copy_seconds


@dataclass(frozen=True, slots=True)
class Reserve:
    """Bytes of the budget that are not for weights; of activations the most that any call has."""

    activations_nbytes: int
    io_nbytes: int
    bookkeeping_nbytes: int

    @property
    def total_nbytes(self) -> int:
        """All of it, in bytes."""
        return self.activations_nbytes + self.io_nbytes + self.bookkeeping_nbytes


@dataclass(frozen=True)
class Problem:
    """Everything that decides a plan.

    Attributes:
        weights: in any order; calls name them by index. A weight that no call reads is in no plan.
        calls: one pass, in order of begin.
        budget_nbytes: the cap on arena and reserve together.
        fingerprint: of what the numbers were taken from; a plan carries it on.
        tiny_nbytes: weights up to this size are resident whenever that fits.
        slice_seconds: what each slice of a sliced weight costs beyond its share of the layer's compute.

    Raises:
        PlanError: the numbers make no sense; the message names the field.
    """

    weights: tuple[Weight, ...]
    calls: tuple[Call, ...]
    storage: Storage
    budget_nbytes: int
    reserve: Reserve
    fingerprint: str
    tiny_nbytes: int = 32768
    slice_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_problem(self)

    def extent_nbytes(self, weight: int) -> int:
        """Bytes that weight `weight` occupies in the arena, whole blocks: also what a load of it reads."""
        block = self.storage.block_nbytes
        item = self.weights[weight]
        return -(-(item.offset_in_block + item.nbytes) // block) * block

    def load_seconds(self, weight: int) -> float:
        """How long storage needs for one load of weight `weight`."""
        storage = self.storage
        requests_seconds = self.weights[weight].requests * storage.request_seconds
        return requests_seconds + self.extent_nbytes(weight) / storage.bytes_per_second

    @property
    def compute_seconds(self) -> float:
        """One pass without a single stall."""
        return math.fsum(call.seconds for call in self.calls)

    def to_json(self) -> str:
        """This problem as JSON text."""
        return json.dumps({"version": PROBLEM_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Problem:
        """The problem in `text`, which may come from anywhere.

        Raises:
            PlanError: it is not a sound problem; the message names the field.
        """
        fields = parse_object(text, "problem")
        fields.integer("version", PROBLEM_VERSION, PROBLEM_VERSION)
        problem = cls(
            weights=fields.items("weights", _read_weight),
            calls=fields.items("calls", _read_call),
            storage=_read_storage(fields.record("storage")),
            budget_nbytes=fields.integer("budget_nbytes", 1),
            reserve=read_reserve(fields.record("reserve")),
            fingerprint=fields.text("fingerprint"),
            tiny_nbytes=fields.integer("tiny_nbytes", 0),
            slice_seconds=fields.seconds("slice_seconds"),
        )
        fields.finish()
        return problem


def read_reserve(fields: Fields) -> Reserve:
    """A `Reserve` out of parsed JSON."""
    reserve = Reserve(
        activations_nbytes=fields.integer("activations_nbytes", 0),
        io_nbytes=fields.integer("io_nbytes", 0),
        bookkeeping_nbytes=fields.integer("bookkeeping_nbytes", 0),
    )
    fields.finish()
    return reserve


def _read_weight(value: object, path: str) -> Weight:
    fields = Fields(value, path)
    weight = Weight(
        name=fields.text("name"),
        nbytes=fields.integer("nbytes", 1),
        offset_in_block=fields.integer("offset_in_block", 0),
        requests=fields.integer("requests", 0),
        rows_only=fields.flag("rows_only"),
        row_seconds=fields.seconds("row_seconds"),
        rows=fields.integer("rows", 1),
        is_moved=fields.flag("is_moved"),
        file=fields.optional_integer("file", 0),
        file_offset=fields.integer("file_offset", 0),
    )
    if fields.flag("is_joined"):
        raise PlanError(f"{path}.is_joined is set: give each weight by itself")
    fields.finish()
    return weight


def _read_call(value: object, path: str) -> Call:
    fields = Fields(value, path)
    call = Call(
        name=fields.text("name"),
        seconds=fields.seconds("seconds"),
        reads=fields.items("reads", lambda item, where: as_integer(item, where, 0, MAX_ITEMS)),
        last=fields.integer("last", 0, MAX_ITEMS),
        activations_nbytes=fields.integer("activations_nbytes", 0),
        kind=fields.choice("kind", tuple(SLOWDOWNS)),
        load_nbytes=fields.optional_integer("load_nbytes", 0),
    )
    fields.finish()
    return call


def _read_storage(fields: Fields) -> Storage:
    storage = Storage(
        bytes_per_second=fields.seconds("bytes_per_second"),
        request_seconds=fields.seconds("request_seconds"),
        block_nbytes=fields.integer("block_nbytes", 1),
        copy_bytes_per_second=fields.seconds("copy_bytes_per_second"),
        load_compute_seconds=fields.seconds("load_compute_seconds"),
        read_compute_share=fields.seconds("read_compute_share"),
        copy_compute_share=fields.seconds("copy_compute_share"),
        regain_bytes_per_second=fields.seconds("regain_bytes_per_second"),
        page_nbytes=fields.integer("page_nbytes", 1),
    )
    fields.finish()
    return storage
