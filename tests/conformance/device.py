"""What every device does. Subclass `DeviceConformance` and say how to make one."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from penstock.checkpoint import FileIdentity, Piece, WeightSource
from penstock.errors import StorageError
from penstock.footprint import read_memory
from penstock.runtime.devices.base import ALIGNMENT_NBYTES, Arena, Device, settled_offset
from penstock.runtime.devices.cpu_queue import HUGE_PAGE_NBYTES
from penstock.runtime.storage import FileStorage, Storage

NBYTES = 1 << 20
BLOCK = 4096


class FailingStorage(FileStorage):
    """Refuses to read beyond `failing_from`."""

    failing_from = NBYTES // 2

    def read(self, file: int, offset: int, into: memoryview, needed_nbytes: int) -> None:
        if offset + needed_nbytes > self.failing_from:
            raise StorageError("injected")
        super().read(file, offset, into, needed_nbytes)


class Reports:
    """Collects completions and lets a test wait for them."""

    def __init__(self) -> None:
        self.errors: dict[int, BaseException | None] = {}
        self.count = 0
        self._changed = threading.Condition()

    def __call__(self, ticket: int, error: BaseException | None) -> None:
        with self._changed:
            self.errors[ticket] = error
            self.count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= count, timeout=60)


def piece_source(file_offset: int, nbytes: int) -> WeightSource:
    """Bytes of the test's file as one weight."""
    return WeightSource("uint8", (nbytes,), (Piece(0, file_offset, nbytes, 0),))


class DeviceConformance(ABC):
    """A claim per test about a device's arena and transfer queue."""

    gives_memory_back = True
    """Whether the pages that are given back are seen to be gone."""

    @abstractmethod
    def make(self) -> Device:
        """A fresh device."""

    @pytest.fixture
    def device(self) -> Device:
        return self.make()

    @pytest.fixture
    def content(self, tmp_path: Path) -> bytes:
        data = bytes(torch.randint(0, 256, (NBYTES,), dtype=torch.uint8).tolist())
        (tmp_path / "weights").write_bytes(data)
        return data

    @pytest.fixture
    def storage(self, tmp_path: Path, content: bytes) -> Iterator[Storage]:
        storage = FileStorage([FileIdentity.of(tmp_path / "weights")])
        yield storage
        storage.close()

    @pytest.fixture
    def arena(self, device: Device) -> Iterator[Arena]:
        arena = device.allocate(NBYTES + 2 * BLOCK)
        yield arena
        arena.close()

    def test_every_transfer_reports_once_and_brings_its_bytes(
        self, device: Device, arena: Arena, storage: Storage, content: bytes
    ) -> None:
        reports = Reports()
        queue = device.open_queue(arena, storage, reports)
        places = [(0, 5000), (8192 + 17, 70000), (NBYTES // 2 + 3, 300_000), (NBYTES - 100, 100)]
        offset, offsets = 0, []
        for ticket, (file_offset, nbytes) in enumerate(places):
            offsets.append(offset + file_offset % BLOCK)
            queue.submit(ticket, piece_source(file_offset, nbytes), offsets[-1])
            offset += -(-(file_offset % BLOCK + nbytes) // BLOCK) * BLOCK
        reports.wait_for(len(places))
        queue.close()
        assert reports.count == len(places)
        assert set(reports.errors.values()) == {None}
        for (file_offset, nbytes), at in zip(places, offsets, strict=True):
            found = arena.tensor(at, torch.uint8, (nbytes,))
            assert bytes(found.tolist()) == content[file_offset : file_offset + nbytes]

    def test_weights_of_several_pieces_are_put_together(
        self, device: Device, arena: Arena, storage: Storage, content: bytes
    ) -> None:
        reports = Reports()
        pieces = (Piece(0, 100_000, 999, 0), Piece(0, 7, 9000, 999), Piece(0, 50_001, 12_345, 9999))
        queue = device.open_queue(arena, storage, reports)
        queue.submit(0, WeightSource("uint8", (22_344,), pieces), 100_000 % BLOCK)
        reports.wait_for(1)
        queue.close()
        expected = b"".join(content[p.file_offset : p.file_offset + p.nbytes] for p in pieces)
        assert bytes(arena.tensor(100_000 % BLOCK, torch.uint8, (22_344,)).tolist()) == expected

    def test_realigned_weights_lie_at_a_multiple_of_the_alignment(
        self, device: Device, arena: Arena, storage: Storage, content: bytes
    ) -> None:
        reports = Reports()
        queue = device.open_queue(arena, storage, reports)
        queue.submit(0, piece_source(4096 + 24, 40_000), 24, realign=True)
        reports.wait_for(1)
        queue.close()
        settled = settled_offset(24, realign=True)
        found = arena.tensor(settled, torch.uint8, (40_000,))
        assert settled % ALIGNMENT_NBYTES == 0
        assert bytes(found.tolist()) == content[4096 + 24 : 4096 + 24 + 40_000]

    def test_a_failed_read_is_reported_once_and_spares_the_others(
        self, device: Device, arena: Arena, tmp_path: Path, content: bytes
    ) -> None:
        reports = Reports()
        queue = device.open_queue(arena, FailingStorage([FileIdentity.of(tmp_path / "weights")]), reports)
        queue.submit(0, piece_source(NBYTES // 4, NBYTES // 2), NBYTES // 4)
        queue.submit(1, piece_source(0, 9000), 0)
        reports.wait_for(2)
        queue.close()
        assert reports.count == 2
        assert isinstance(reports.errors[0], StorageError)
        assert reports.errors[1] is None
        assert bytes(arena.tensor(0, torch.uint8, (9000,)).tolist()) == content[:9000]

    def test_a_weight_without_bytes_is_there_at_once(self, device: Device, arena: Arena, storage: Storage) -> None:
        reports = Reports()
        queue = device.open_queue(arena, storage, reports)
        queue.submit(0, WeightSource("float32", (0, 4), ()), 0)
        reports.wait_for(1)
        queue.close()
        assert arena.tensor(0, torch.float32, (0, 4)).shape == (0, 4)

    def test_closing_ends_every_thread_and_is_safe_twice(self, device: Device, arena: Arena, storage: Storage) -> None:
        before = set(threading.enumerate())
        queue = device.open_queue(arena, storage, Reports())
        queue.submit(0, piece_source(0, NBYTES), 0)
        queue.close()
        queue.close()
        assert set(threading.enumerate()) <= before

    def test_a_drained_queue_has_reported_everything_and_goes_on(
        self, device: Device, arena: Arena, storage: Storage, content: bytes
    ) -> None:
        reports = Reports()
        queue = device.open_queue(arena, storage, reports)
        for ticket in range(8):
            queue.submit(ticket, piece_source(ticket * 10 * BLOCK, 9 * BLOCK), ticket * 10 * BLOCK)
        queue.drain()
        assert reports.count == 8
        queue.submit(8, piece_source(5000, 70_000), 5000)
        reports.wait_for(9)
        assert set(reports.errors.values()) == {None}
        assert bytes(arena.tensor(5000, torch.uint8, (70_000,)).tolist()) == content[5000:75_000]
        queue.close()

    def test_memory_that_is_given_back_is_not_resident_and_can_be_filled_again(
        self, device: Device, storage: Storage, content: bytes
    ) -> None:
        arena = device.allocate(3 * HUGE_PAGE_NBYTES + BLOCK)
        filled = arena.tensor(0, torch.uint8, (arena.nbytes,)).fill_(1)
        assert arena.resident_nbytes() >= arena.nbytes
        arena.give_back(HUGE_PAGE_NBYTES, HUGE_PAGE_NBYTES)
        if self.gives_memory_back:
            assert arena.resident_nbytes() <= arena.nbytes - HUGE_PAGE_NBYTES + BLOCK
        assert bool(filled[:HUGE_PAGE_NBYTES].all() and filled[2 * HUGE_PAGE_NBYTES :].all())
        reports = Reports()
        queue = device.open_queue(arena, storage, reports)
        queue.submit(0, piece_source(17, 300_000), HUGE_PAGE_NBYTES + 17)
        reports.wait_for(1)
        queue.close()
        again = filled[HUGE_PAGE_NBYTES + 17 :][:300_000]
        assert bytes(again.tolist()) == content[17:300_017]
        arena.close()

    def test_of_bytes_that_are_no_whole_page_nothing_is_given_back(self, arena: Arena) -> None:
        filled = arena.tensor(0, torch.uint8, (arena.nbytes,)).fill_(1)
        arena.give_back(1, BLOCK)
        arena.give_back(BLOCK, 0)
        assert bool(filled.all())

    def test_no_memory_beyond_its_end_comes_with_an_arena(self, device: Device) -> None:
        before = read_memory()
        arena = device.allocate(HUGE_PAGE_NBYTES // 2)
        arena.tensor(0, torch.uint8, (arena.nbytes,)).fill_(1)
        after = read_memory()
        assert before is not None
        assert after is not None
        assert after.anonymous_nbytes - before.anonymous_nbytes < HUGE_PAGE_NBYTES
        arena.close()

    def test_tensors_share_the_arena_and_keep_only_their_own_bytes(self, arena: Arena) -> None:
        first, again = (arena.tensor(64, torch.float32, (2, 3)) for _ in range(2))
        first.fill_(7.0)
        assert again.tolist() == [[7.0] * 3] * 2
        assert first.untyped_storage().nbytes() == 24

    def test_a_tensor_outlives_its_closed_arena(self, device: Device) -> None:
        arena = device.allocate(BLOCK)
        tensor = arena.tensor(0, torch.float32, (4,)).fill_(3.0)
        arena.close()
        arena.close()
        del arena
        assert tensor.tolist() == [3.0] * 4
