"""What every test gets: a cache of its own session, two compute threads, and a check that nothing stays behind."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from penstock.cli.app import run_app
from penstock.planning.strategies import registry
from penstock.planning.strategies.flashmem import FlashMem

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def penstock_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of this test session, empty at its start."""
    folder = tmp_path_factory.mktemp("penstock-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def short_searches() -> Iterator[None]:
    """What holds for every plan holds for one that a solver was given little time for, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._STRATEGIES, "flashmem", FlashMem(time_limit_seconds=0.2))
        yield


@pytest.fixture(scope="session", autouse=True)
def two_compute_threads() -> None:
    """The same number of compute threads on every machine: products are then summed in the same order."""
    torch.set_num_threads(2)


def _penstock_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("penstock")}


def _open_files() -> dict[int, str]:
    """Descriptors of this process that are open on something with a path, and that path.

    Fonts do not count: matplotlib keeps open what it has drawn with.
    """
    files = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the descriptor that listed the folder
        if target.startswith("/") and not target.startswith(("/dev/", "/proc/")) and not target.endswith(".ttf"):
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


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line that has to fail as bad input does, and returns its one line without `error: `."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert run_app([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def answers(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, object]]:
    """Runs a command line with `--json` and returns what it printed; nothing may come on standard error."""

    def run(*arguments: object, code: int = 0) -> dict[str, object]:
        capsys.readouterr()
        assert run_app([*(str(argument) for argument in arguments), "--json"]) == code
        out, err = capsys.readouterr()
        assert err == ""
        answer = json.loads(out)
        assert isinstance(answer, dict)
        return answer

    return run


# No test measures time: a slow machine is no failure.
hypothesis.settings.register_profile(
    "untimed", max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")
