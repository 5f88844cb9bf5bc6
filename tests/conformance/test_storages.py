from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import pytest

from penstock.checkpoint import FileIdentity
from penstock.runtime.storage import FileStorage, Storage

from .storage import StorageConformance


class TestDirectStorage(StorageConformance):
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path

    def open(self, files: list[FileIdentity]) -> Storage:
        return FileStorage(files)


class TestBufferedStorage(StorageConformance):
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path

    def open(self, files: list[FileIdentity]) -> Storage:
        return FileStorage(files, direct=False)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no tmpfs at /dev/shm")
class TestTmpfsStorage(StorageConformance):
    def folder(self, tmp_path: Path) -> Path:
        return Path("/dev/shm")

    def open(self, files: list[FileIdentity]) -> Storage:
        return FileStorage(files)


class _RefusingOpen:
    """`os.open` on a file system without direct I/O."""

    def __init__(self) -> None:
        self._open = os.open

    def __call__(self, path: object, flags: int, *args: object, **kwargs: object) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return self._open(path, flags, *args, **kwargs)  # type: ignore[arg-type]


def test_where_direct_reads_are_refused_it_is_said_and_buffered_reads_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 16)
    monkeypatch.setattr(os, "open", _RefusingOpen())
    with caplog.at_level(logging.WARNING, "penstock"):
        storage = FileStorage([FileIdentity.of(tmp_path / "weights")])
    into = bytearray(4096)
    storage.read(0, 0, memoryview(into), 4096)
    storage.close()
    assert not storage.direct
    assert [record.message for record in caplog.records if "refuses direct I/O" in record.message]
    assert into == bytes(range(256)) * 16


def test_short_buffered_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(8192)
    (tmp_path / "weights").write_bytes(content)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:1000]], at))
    into = bytearray(8192)
    with contextlib.closing(FileStorage([FileIdentity.of(tmp_path / "weights")], direct=False)) as storage:
        storage.read(0, 0, memoryview(into), 8192)
    assert into == content
