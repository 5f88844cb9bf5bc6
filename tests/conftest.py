"""What every test gets: a cache of its own session, two compute threads, and a check that nothing stays behind."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def penstock_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of this test session, empty at its start."""
    folder = tmp_path_factory.mktemp("penstock-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def two_compute_threads() -> None:
    """The same number of compute threads on every machine: products are then summed in the same order."""
    torch.set_num_threads(2)


def _penstock_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("penstock")}


def _open_files() -> dict[int, str]:
    """Descriptors of this process that are open on something with a path, and that path."""
    files = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the descriptor that listed the folder
        if target.startswith("/") and not target.startswith(("/dev/", "/proc/")):
            files[int(entry)] = target
    return files


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no Penstock thread and no open file behind, whatever it did.

    Objects in reference cycles count as gone: they are collected first. A test that keeps a stream alive on purpose
    (in a fixture of wider scope) says `@pytest.mark.leaves_stream_open`.
    """
    threads, files = _penstock_threads(), _open_files()
    yield
    if request.node.get_closest_marker("leaves_stream_open"):
        return
    if _penstock_threads() - threads or _open_files().items() - files.items():
        gc.collect()
    left = sorted(thread.name for thread in _penstock_threads() - threads)
    assert not left, f"threads left behind: {left}"
    opened = dict(_open_files().items() - files.items())
    assert not opened, f"descriptors left open: {opened}"


# No test measures time: a slow machine is no failure.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")
