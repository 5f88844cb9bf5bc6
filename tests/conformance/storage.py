"""What every storage does. Subclass `StorageConformance` and say how to open one."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from mmap import mmap
from pathlib import Path

import pytest

from penstock.checkpoint import FileIdentity
from penstock.errors import CheckpointError, StorageError
from penstock.runtime.storage import Storage

SIZE = 5 * 4096 + 1234


class StorageConformance(ABC):
    """A claim per test about a storage over two files."""

    @abstractmethod
    def folder(self, tmp_path: Path) -> Path:
        """Where the test's files lie."""

    @abstractmethod
    def open(self, files: list[FileIdentity]) -> Storage:
        """A storage over `files`."""

    @pytest.fixture
    def paths(self, tmp_path: Path) -> Iterator[list[Path]]:
        folder = self.folder(tmp_path)
        paths = [folder / f"penstock-conformance-{os.getpid()}-{i}" for i in range(2)]
        for path in paths:
            path.write_bytes(os.urandom(SIZE))
        yield paths
        for path in paths:
            path.unlink(missing_ok=True)

    @pytest.fixture
    def storage(self, paths: list[Path]) -> Iterator[Storage]:
        storage = self.open([FileIdentity.of(path) for path in paths])
        yield storage
        storage.close()

    def test_blocks_are_read_as_they_lie_in_the_file(self, storage: Storage, paths: list[Path]) -> None:
        block = storage.block_nbytes
        with mmap(-1, 2 * block) as memory, memoryview(memory) as view:
            storage.read(1, block, view, 2 * block)
            assert view == paths[1].read_bytes()[block : 3 * block]

    def test_the_end_of_the_file_leaves_the_tail_unfilled(self, storage: Storage, paths: list[Path]) -> None:
        block = storage.block_nbytes
        start = SIZE // block * block
        with mmap(-1, block) as memory, memoryview(memory) as view:
            storage.read(0, start, view, SIZE - start)
            assert view[: SIZE - start] == paths[0].read_bytes()[start:]

    def test_bytes_beyond_the_end_are_an_error(self, storage: Storage) -> None:
        block = storage.block_nbytes
        with mmap(-1, block) as memory, memoryview(memory) as view, pytest.raises(StorageError, match="file ends"):
            storage.read(0, SIZE // block * block, view, block)

    def test_a_file_cut_short_is_an_error(self, storage: Storage, paths: list[Path]) -> None:
        os.truncate(paths[0], 100)
        block = storage.block_nbytes
        with mmap(-1, block) as memory, memoryview(memory) as view, pytest.raises(StorageError, match="cut short"):
            storage.read(0, 0, view, block)
        with pytest.raises(CheckpointError):
            storage.check_unchanged()

    def test_a_replaced_file_is_noticed(self, storage: Storage, paths: list[Path]) -> None:
        storage.check_unchanged()
        other = paths[0].with_name(paths[0].name + "-other")
        other.write_bytes(paths[0].read_bytes())
        other.replace(paths[0])
        with pytest.raises(CheckpointError, match=r"penstock-conformance"):
            storage.check_unchanged()

    def test_a_file_that_is_gone_cannot_be_opened(self, paths: list[Path]) -> None:
        files = [FileIdentity.of(path) for path in paths]
        paths[1].unlink()
        with pytest.raises(CheckpointError, match=r"cannot be opened|missing|gone"):
            self.open(files)

    def test_several_threads_read_at_once(self, storage: Storage, paths: list[Path]) -> None:
        expected, block = paths[0].read_bytes(), storage.block_nbytes
        wrong: list[int] = []

        def read(index: int) -> None:
            with mmap(-1, block) as memory, memoryview(memory) as view:
                for turn in range(20):
                    at = (index + turn) % 5 * block
                    storage.read(0, at, view, block)
                    if view != expected[at : at + block]:
                        wrong.append(at)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_closing_twice_is_safe(self, storage: Storage) -> None:
        storage.close()
        storage.close()
