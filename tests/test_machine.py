"""Storage bandwidth is measured as the runtime reads, kept once, and believed only if it can be true."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from penstock import machine, probe
from penstock.errors import PenstockError, StorageError
from penstock.machine import StorageProfile


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of a millisecond from 2 MiB: their values are of no interest here."""
    monkeypatch.setattr(machine, "_QUICK_SECONDS", 0.001)
    monkeypatch.setattr(machine, "_FULL_SECONDS", 0.001)
    monkeypatch.setattr(machine, "_QUICK_PROBE_NBYTES", 4 * machine.MIB)
    monkeypatch.setattr(machine, "_FULL_PROBE_NBYTES", 8 * machine.MIB)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that is still empty."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """An empty folder to measure."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_a_profile_has_every_combination_and_sound_numbers(folder: Path) -> None:
    profile = machine.measure(folder)
    assert {(rate.threads, rate.read_nbytes) for rate in profile.table} == {
        (threads, nbytes) for threads in machine.THREADS for nbytes in machine.READ_NBYTES
    }
    assert all(rate.bytes_per_second > 0 for rate in profile.table)
    assert profile.bytes_per_second > 0
    assert profile.request_seconds >= 0
    assert profile.block_nbytes in (512, 4096)
    assert profile.best_read_nbytes in machine.READ_NBYTES
    assert profile.best_threads in machine.THREADS
    assert profile.regain_bytes_per_second > 0
    assert profile.page_nbytes % 4096 == 0


def test_measuring_leaves_no_file_beside_the_checkpoint(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"small")
    machine.measure(folder / "model.safetensors", quick=True)
    assert [file.name for file in folder.iterdir()] == ["model.safetensors"]


def test_the_second_profile_comes_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine.storage_profile(folder)
    monkeypatch.setattr(machine, "measure_rates", None)
    assert machine.storage_profile(folder) == first


def test_a_large_checkpoint_is_measured_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_OWN_FILE_NBYTES", 2 * machine.MIB)
    monkeypatch.setattr(machine, "fill", None)
    (folder / "model-00001-of-00002.safetensors").write_bytes(bytes(3 * machine.MIB))
    (folder / "model-00002-of-00002.safetensors").write_bytes(bytes(machine.MIB))
    assert machine.measure(folder, quick=True).bytes_per_second > 0


def _cache_file(cache: Path) -> Path:
    (file,) = (cache / "machine").iterdir()
    return file


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        {"bytes_per_second": 0},
        {"bytes_per_second": -1e9},
        {"bytes_per_second": "fast"},
        {"bytes_per_second": 10**400},
        {"regain_bytes_per_second": 0},
        {"page_nbytes": -4096},
        {"block_nbytes": 512.0},
        {"bytes_per_second": float("nan")},
        {"request_seconds": None},
        {"request_seconds": -1.0},
        {"block_nbytes": 1000},
        {"block_nbytes": 2**50},
        {"best_threads": 0},
        {"best_threads": True},
        {"table": []},
        {"table": [{"threads": 1}]},
        {"table": 7},
        {"direct": "yes"},
        {"version": 0},
        {"unheard_of": 1},
    ],
)
def test_a_cached_profile_that_cannot_be_true_is_measured_again(
    folder: Path, cache: Path, damage: bytes | dict[str, object]
) -> None:
    machine.storage_profile(folder)
    file = _cache_file(cache)
    if isinstance(damage, dict):
        file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    else:
        file.write_bytes(damage)
    broken = file.read_bytes()
    assert isinstance(machine.storage_profile(folder), StorageProfile)
    assert file.read_bytes() != broken


def test_a_read_only_cache_costs_only_the_next_measurement(folder: Path, cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    assert machine.storage_profile(folder).bytes_per_second > 0


def test_without_direct_io_reads_are_buffered_and_the_profile_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(probe.os, "open", refuse)
    profile = machine.measure(folder, quick=True)
    assert not profile.direct
    assert profile.bytes_per_second > 0


def test_a_file_system_that_takes_the_flag_and_refuses_the_reads_is_read_through_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, real_read, direct = os.open, os.preadv, set()

    def remember(path: Path, flags: int, *rest: int) -> int:
        descriptor = real_open(path, flags, *rest)
        (direct.add if flags & os.O_DIRECT else direct.discard)(descriptor)
        return descriptor

    def refuse(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if descriptor in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_read(descriptor, buffers, offset)

    monkeypatch.setattr(probe.os, "open", remember)
    monkeypatch.setattr(probe.os, "preadv", refuse)
    assert not machine.measure(folder, quick=True).direct


@pytest.mark.parametrize("answer", [OSError(errno.EIO, "Input/output error"), 512])
def test_a_failed_or_short_read_is_a_storage_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, answer: OSError | int
) -> None:
    real = os.preadv

    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if len(buffers[0]) <= 4096:
            return real(descriptor, buffers, offset)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(probe.os, "preadv", fail)
    with pytest.raises(StorageError, match="measuring storage failed"):
        machine.measure(folder, quick=True)


def test_no_room_anywhere_names_the_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(machine, "fill", full)
    with pytest.raises(StorageError, match="PENSTOCK_CACHE"):
        machine.measure(folder)


def test_no_room_for_a_probe_leaves_the_small_checkpoint_to_measure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(machine, "fill", full)
    (folder / "model.safetensors").write_bytes(bytes(100_000))
    assert machine.measure(folder, quick=True).bytes_per_second > 0


def test_a_path_that_does_not_exist_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere") as caught:
        machine.storage_profile(tmp_path / "nowhere")
    assert isinstance(caught.value, PenstockError)
    assert isinstance(caught.value, OSError)


def test_progress_ends_at_the_number_of_steps(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    machine.measure(folder, quick=True, progress=lambda done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert steps[-1][0] == steps[-1][1]


def test_the_machine_is_described_the_same_each_time() -> None:
    assert machine.describe() == machine.describe()
    assert len(machine.describe().fingerprint) == 16
    assert machine.describe().cores >= 1
    assert machine.describe().memory_nbytes > 0
