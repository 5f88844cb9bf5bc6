"""The cache folder is where people put it; what is written there is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.cache import atomic_write, cache_dir, read_json, write_json


def test_the_own_variable_goes_before_the_shared_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("PENSTOCK_CACHE")
    assert cache_dir() == tmp_path / "shared" / "penstock"


@pytest.mark.parametrize("shared", ["", "relative/path"])
def test_without_a_usable_variable_the_cache_is_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: str
) -> None:
    monkeypatch.delenv("PENSTOCK_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "penstock"


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(target) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_written_file_has_the_mode_that_any_file_has(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_bytes(b"")
    with atomic_write(tmp_path / "atomic") as file:
        file.write(b"new")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_json_comes_back_and_anything_else_is_absent(tmp_path: Path) -> None:
    assert write_json(tmp_path / "deep" / "value.json", {"a": [1, 2.5, None]})
    assert read_json(tmp_path / "deep" / "value.json") == {"a": [1, 2.5, None]}
    assert read_json(tmp_path / "missing.json") is None
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    assert read_json(tmp_path / "bad.json") is None
    (tmp_path / "nested.json").write_text("[" * 100_000)
    assert read_json(tmp_path / "nested.json") is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not write_json(tmp_path / "file" / "value.json", 1)
