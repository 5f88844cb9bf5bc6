"""Loads come in order, never over one another; errors reach whoever waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.checkpoint import FileIdentity, Piece, WeightSource
from penstock.errors import StorageError, StreamStateError
from penstock.runtime.devices.base import Device, TransferQueue
from penstock.runtime.devices.cpu import CpuDevice
from penstock.runtime.events import EventLog, Kind
from penstock.runtime.loads import PlannedLoad
from penstock.runtime.pacing import Gates, LockstepPace, Pace, PlannedPace
from penstock.runtime.pipeline import ABSENT, LOADING, READY, Pipeline, PlaceTakenError
from penstock.runtime.storage import FileStorage

from ..adversary import AdversarialDevice  # noqa: TID252

BLOCK = 4096
WEIGHTS = 8
CONTENT = bytes((i // BLOCK * 31 + i) % 256 for i in range(WEIGHTS * BLOCK))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights"
    path.write_bytes(CONTENT)
    return path


def load(weight: int, place: int, *, resident: bool = False, staged: int | None = None) -> PlannedLoad:
    """Block number `weight` of the file, at block number `place` of the arena, by way of block `staged` of staging."""
    source = WeightSource("uint8", (BLOCK,), (Piece(0, weight * BLOCK, BLOCK, 0),))
    staging_offset = None if staged is None else staged * BLOCK
    return PlannedLoad(source, place * BLOCK, place * BLOCK, (place + 1) * BLOCK, False, resident, staging_offset)


class Opened:
    """A pipeline over the file, and what lies in its arena."""

    def __init__(
        self, file: Path, loads: list[PlannedLoad], device: Device | None = None, pace: Pace | None = None
    ) -> None:
        device = device or CpuDevice()
        self.loads = loads
        self.arena = device.allocate(max(load.extent_end for load in loads))
        self.storage = FileStorage([FileIdentity.of(file)])
        staged = [load.staging_offset for load in loads if load.staging_offset is not None]
        staging = device.allocate(max(staged) + BLOCK) if staged else None
        self.pipeline = Pipeline(device, self.arena, self.storage, loads, staging=staging, pace=pace)

    def has_its_bytes(self, index: int) -> bool:
        place = self.loads[index]
        found = self.arena.tensor(place.offset, torch.uint8, (BLOCK,))
        begin = place.source.pieces[0].file_offset
        return bytes(found.tolist()) == CONTENT[begin : begin + BLOCK]

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.close()


@pytest.fixture
def two_in_one_place(file: Path) -> Iterator[Opened]:
    with Opened(file, [load(0, 0), load(1, 0)]) as opened:
        yield opened


def test_a_load_waits_until_its_place_is_free(two_in_one_place: Opened) -> None:
    pipeline = two_in_one_place.pipeline
    pipeline.start([0, 1], [])
    pipeline.hold(0)
    pipeline._changed.acquire()
    assert pipeline.states[1] == ABSENT
    pipeline._changed.release()
    assert two_in_one_place.has_its_bytes(0)
    pipeline.release(0)
    pipeline.hold(1)
    assert two_in_one_place.has_its_bytes(1)
    assert pipeline.states[0] == ABSENT
    assert pipeline.stats.demand_loads == 0


def test_a_place_that_is_held_is_never_taken(two_in_one_place: Opened) -> None:
    pipeline = two_in_one_place.pipeline
    pipeline.start([0, 1], [])
    pipeline.hold(0)
    with pytest.raises(PlaceTakenError):
        pipeline.hold(1)
    assert two_in_one_place.has_its_bytes(0)


def test_a_load_that_an_interrupt_undid_is_noted_as_gone(two_in_one_place: Opened) -> None:
    pipeline, log = two_in_one_place.pipeline, EventLog({})
    pipeline.record(log, ["a", "b"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline._queue, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.start([0], [])
    pipeline.states[0] = LOADING  # as if the interrupt had come a moment earlier
    log.place_taken(0)
    pipeline.recover()
    pipeline.start([1], [])
    pipeline.hold(1)
    taken = [(event.kind, event.subject) for event in log.events if event.kind in (Kind.PLACE_TAKEN, Kind.PLACE_FREED)]
    assert taken == [(Kind.PLACE_TAKEN, 0), (Kind.PLACE_FREED, 0)] * 2 + [(Kind.PLACE_TAKEN, 1)]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_is_held_twice_is_freed_by_the_second_release(two_in_one_place: Opened) -> None:
    pipeline = two_in_one_place.pipeline
    pipeline.start([0], [])
    pipeline.hold(0)
    pipeline.hold(0)
    pipeline.release(0)
    assert pipeline.states[0] == READY
    pipeline.release(0)
    assert pipeline.states[0] == ABSENT


def test_loads_run_on_into_the_next_pass(file: Path) -> None:
    with Opened(file, [load(0, 0), load(1, 1)]) as opened:
        opened.pipeline.start([0, 1], [0, 1])
        for _ in range(3):
            for index in (0, 1):
                opened.pipeline.hold(index)
                assert opened.has_its_bytes(index)
                opened.pipeline.release(index)
        assert opened.pipeline.stats.demand_loads == 0


def test_a_resident_stays_and_is_loaded_once(file: Path) -> None:
    with Opened(file, [load(0, 0), load(1, 1, resident=True)]) as opened:
        opened.pipeline.start([0, 1], [0])
        for _ in range(3):
            opened.pipeline.hold(1)
            opened.pipeline.release(1)
            opened.pipeline.hold(0)
            opened.pipeline.release(0)
        opened.pipeline.hold(1)
        opened.pipeline.release(1)
        opened.pipeline.start([0], [0])
        assert opened.pipeline.states[1] == READY


def test_what_nobody_planned_for_comes_on_demand(file: Path) -> None:
    with Opened(file, [load(0, 0), load(1, 0), load(2, 0)]) as opened:
        opened.pipeline.start([0], [])
        opened.pipeline.hold(2)
        assert opened.has_its_bytes(2)
        assert opened.pipeline.stats.demand_loads == 1


class FailsOnce(FileStorage):
    fails = True

    def read(self, file: int, offset: int, into: memoryview, needed_nbytes: int) -> None:
        if self.fails and offset == BLOCK:
            raise StorageError("injected")
        super().read(file, offset, into, needed_nbytes)


@pytest.mark.parametrize("error_comes", ["before", "after"])
def test_an_error_reaches_the_waiter_and_a_later_call_tries_again(file: Path, error_comes: str) -> None:
    storage = FailsOnce([FileIdentity.of(file)])
    device = CpuDevice()
    pipeline = Pipeline(device, device.allocate(2 * BLOCK), storage, [load(0, 0), load(1, 1)])
    if error_comes == "before":
        pipeline.start([0, 1], [])
        pipeline.hold(0)
    else:
        pipeline.start([1, 0], [])
    with pytest.raises(StorageError, match="injected"):
        pipeline.hold(1)
    with pytest.raises(StorageError, match="injected"):
        pipeline.hold(1)
    storage.fails = False
    pipeline.hold(1)
    pipeline.close()
    assert pipeline.states[1] == READY


class FailsWhenTold(FileStorage):
    """Its first read waits for `may_fail`, and fails."""

    def __init__(self, file: Path) -> None:
        super().__init__([FileIdentity.of(file)])
        self.begun, self.may_fail = threading.Event(), threading.Event()

    def read(self, file: int, offset: int, into: memoryview, needed_nbytes: int) -> None:
        if not self.begun.is_set():
            self.begun.set()
            self.may_fail.wait()
            raise StorageError("injected")
        super().read(file, offset, into, needed_nbytes)


def test_the_error_of_a_read_from_before_a_pass_is_not_raised_in_it(file: Path) -> None:
    storage, device = FailsWhenTold(file), CpuDevice()
    pipeline = Pipeline(device, device.allocate(BLOCK), storage, [load(0, 0)])
    pipeline.start([0], [])
    storage.begun.wait()
    pipeline.forgive()
    storage.may_fail.set()
    pipeline.hold(0)
    pipeline.close()
    assert pipeline.states[0] == READY


def test_closing_joins_every_thread_and_tells_who_still_waits(file: Path) -> None:
    before = set(threading.enumerate())
    opened = Opened(file, [load(0, 0)])
    opened.pipeline.start([0], [])
    opened.pipeline.close()
    opened.pipeline.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(StreamStateError, match="closed"):
        opened.pipeline.start([0], [])
    opened.pipeline.states[0] = ABSENT
    with pytest.raises(StreamStateError, match="closed"):
        opened.pipeline.hold(0)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    places=st.lists(st.integers(0, 3), min_size=2, max_size=WEIGHTS),
    walk=st.lists(st.tuples(st.integers(0, WEIGHTS - 1), st.booleans()), max_size=30),
    seed=st.integers(0, 99),
    staged=st.lists(st.sampled_from([None, 0, 1, 2]), min_size=WEIGHTS, max_size=WEIGHTS),
)
def test_whatever_is_asked_for_in_whatever_order_holds_its_own_bytes(
    file: Path, places: list[int], walk: list[tuple[int, bool]], seed: int, staged: list[int | None]
) -> None:
    loads = [load(weight, place, staged=staged[weight]) for weight, place in enumerate(places)]
    order = range(len(loads))
    with Opened(file, loads, AdversarialDevice(seed)) as opened:
        opened.pipeline.start(order, order)
        for asked, seeks in walk:
            index = asked % len(loads)
            if seeks:
                opened.pipeline.seek([i for i in order if i >= index], keep=lambda i, index=index: i >= index)
            opened.pipeline.hold(index)
            assert opened.has_its_bytes(index)
            present = [loads[i].offset for i in order if opened.pipeline.states[i] != ABSENT]
            assert len(set(present)) == len(present), "two loads in one place"
            opened.pipeline.release(index)


class CountingDevice(CpuDevice):
    """The CPU, and which transfers were submitted, in order."""

    def __init__(self) -> None:
        self.submitted: list[int] = []

    def open_queue(self, *args: Any, **kwargs: Any) -> TransferQueue:
        queue = super().open_queue(*args, **kwargs)
        submit = queue.submit

        def counted(ticket: int, *args: Any, **kwargs: Any) -> None:
            self.submitted.append(ticket)
            submit(ticket, *args, **kwargs)

        queue.submit = counted  # type: ignore[method-assign]
        return queue


def test_a_planned_load_starts_when_the_call_that_it_follows_has_ended(file: Path) -> None:
    device = CountingDevice()
    gates = Gates({1: (0, 0), 2: (1, 0), 0: (2, -1)}, {})
    with Opened(file, [load(0, 0), load(1, 1), load(2, 2)], device, PlannedPace(gates)) as opened:
        pipeline = opened.pipeline
        for _ in range(3):
            if not device.submitted:
                pipeline.start([0, 1, 2], [0, 1, 2])
            for call in range(3):
                assert device.submitted[-1] == call, "too early, or too late"
                pipeline.hold(call)
                assert opened.has_its_bytes(call)
                pipeline.release(call)
                assert device.submitted[-1] == call
                pipeline.ended(call)
            pipeline.ended(None)
        assert pipeline.stats.demand_loads == 0


def test_a_planned_load_that_is_asked_for_earlier_comes(file: Path) -> None:
    with Opened(file, [load(0, 0), load(1, 1)], pace=PlannedPace(Gates({1: (0, 0)}, {}))) as opened:
        opened.pipeline.start([0, 1], [0, 1])
        opened.pipeline.hold(1)
        assert opened.has_its_bytes(1)
        assert opened.pipeline.stats.demand_loads == 1


def test_in_lockstep_a_layer_computes_while_the_next_is_copied_and_no_more(file: Path) -> None:
    device = CountingDevice()
    loads = [load(index, index % 2, staged=index % 2) for index in range(4)]
    pace = LockstepPace(Gates({}, {call: (call,) for call in range(4)}))
    with Opened(file, loads, device, pace) as opened:
        pipeline = opened.pipeline
        pipeline.start(range(4), range(4))
        for layer in range(12):
            pipeline.begun(layer % 4)
            assert len(device.submitted) == layer + 2
            assert pipeline.states[layer % 4] == READY, "the cycle before had not ended"
            pipeline.hold(layer % 4)
            assert opened.has_its_bytes(layer % 4)
            pipeline.release(layer % 4)
        assert pipeline.stats.demand_loads == 0


def test_staging_is_read_ahead_while_the_arena_is_full(file: Path) -> None:
    loads = [load(0, 0, staged=0), load(1, 0, staged=1), load(2, 0, staged=2)]
    storage_reads = threading.Semaphore(0)

    class Told(FileStorage):
        def read(self, *args: Any) -> None:
            super().read(*args)
            storage_reads.release()

    device = CpuDevice()
    arena, staging = device.allocate(BLOCK), device.allocate(3 * BLOCK)
    pipeline = Pipeline(device, arena, Told([FileIdentity.of(file)]), loads, staging=staging)
    pipeline.start([0, 1, 2], [0, 1, 2])
    pipeline.hold(0)
    for _ in range(3):  # more than the arena has room for
        assert storage_reads.acquire(timeout=60)
    assert [pipeline.states[index] for index in (1, 2)] == [ABSENT, ABSENT]
    pipeline.release(0)
    pipeline.hold(1)
    pipeline.close()
