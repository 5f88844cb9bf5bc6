"""Storages on their way out of memory and back, from any address to one like it."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import StorageError
from penstock.runtime.devices.cpu_queue import CpuArena
from penstock.training.entry import Entry
from penstock.training.links import measure_links
from penstock.training.mover import Mover, Place
from penstock.training.swapfile import BLOCK_NBYTES, SwapFile, room_nbytes


def storage_at(remainder: int, nbytes: int) -> torch.UntypedStorage:
    """Random bytes at an address with this remainder to the block."""
    arena = CpuArena(nbytes + BLOCK_NBYTES)
    tensor = arena.tensor(remainder, torch.uint8, (nbytes,))
    tensor.copy_(torch.randint(256, (nbytes,), dtype=torch.uint8))
    return tensor.untyped_storage()


def bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 63), st.integers(1, 5 * BLOCK_NBYTES))
def test_what_comes_back_is_what_left_at_an_address_like_it(sixty_fourths: int, nbytes: int) -> None:
    storage = storage_at(64 * sixty_fourths, nbytes)
    expected, address = bytes_of(storage).clone(), storage.data_ptr()
    mover = Mover(SwapFile(None))
    try:
        written = mover.write(storage, 0).result()
        bytes_of(storage).fill_(0)
        place = Place(CpuArena(room_nbytes(nbytes)), 0, room_nbytes(nbytes))
        found = place.open(written)
        assert found is not None
        mover.read(written, found).result()
    finally:
        mover.close()
    assert torch.equal(bytes_of(found), expected)
    assert found.data_ptr() % BLOCK_NBYTES == address % BLOCK_NBYTES


def test_a_place_is_taken_until_its_last_tensor_is_gone() -> None:
    mover = Mover(SwapFile(None))
    written = mover.write(storage_at(0, 4096), 0).result()
    place = Place(CpuArena(room_nbytes(4096)), 0, room_nbytes(4096))
    first = place.open(written)
    assert first is not None
    view = bytes_of(first)[5:]
    del first
    assert place.open(written) is None
    del view
    assert place.open(written) is not None
    mover.close()


def test_the_storage_is_free_once_it_is_written() -> None:
    mover = Mover(SwapFile(None))
    storage = storage_at(64, 1 << 20)
    released: list[bool] = []
    weakref.finalize(storage, released.append, True)
    future = mover.write(storage, 0)
    del storage
    future.result()
    assert released == [True]
    mover.close()


def test_links_are_measured_and_nothing_stays(tmp_path: Path) -> None:
    out, back = measure_links(tmp_path)
    assert out.bytes_per_second > 1e6
    assert back.bytes_per_second > 1e6
    assert not list(tmp_path.iterdir())


def test_closing_twice_is_one_closing() -> None:
    mover = Mover(SwapFile(None))
    mover.close()
    mover.close()


@pytest.mark.parametrize("direct", [True, False])
def test_where_direct_io_is_refused_it_goes_through_the_page_cache(
    direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refusing(path: str, flags: int, *more: int) -> int:
        if not direct and flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *more)

    monkeypatch.setattr("penstock.training.swapfile.os.open", refusing)
    file = SwapFile(None)
    assert direct or not file.direct
    storage = storage_at(128, 10000)
    expected = bytes_of(storage).clone()
    written = file.write(storage, 0)
    bytes_of(storage).fill_(0)
    file.read(written, storage.data_ptr())
    file.close()
    assert torch.equal(bytes_of(storage), expected)


def test_room_is_allotted_at_the_end_and_given_back(tmp_path: Path) -> None:
    file = SwapFile(tmp_path)
    try:
        assert [file.allot(size) for size in (8192, 0, 4096)] == [0, 8192, 8192]
        file.shrink(8192)
        assert file.allot(4096) == 8192
        assert os.fstat(file._descriptor).st_size == file.nbytes == 12288
    finally:
        file.close()


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_read_that_failed_ahead_is_tried_once_more(goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file holds is not lost because of one error."""

    def failing(*_: object) -> int:
        raise OSError(5, os.strerror(5))

    mover = Mover(SwapFile(None))
    try:
        storage = storage_at(0, 8192)
        expected = bytes_of(storage).clone()
        entry = Entry(storage, mover, 0, Place(CpuArena(room_nbytes(8192)), 0, room_nbytes(8192)))
        del storage
        entry.leave()
        assert entry.settle(wait=True)
        with monkeypatch.context() as patch:
            patch.setattr("penstock.training.swapfile.os.preadv", failing)
            entry.begin_to_return()
            assert entry._reading is not None
            assert isinstance(entry._reading.exception(), StorageError)
            if goes_on:
                with pytest.raises(StorageError, match="reading"):
                    entry.present()
        assert torch.equal(bytes_of(entry.present()[0]), expected)
    finally:
        mover.close()
