"""Results files: one JSON per script, with all samples and what was derived from them."""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from penstock.cache import atomic_write

SCHEMA_VERSION = 1
FOLDER = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "accelerate", "diffusers", "safetensors", "numpy", "ortools")


def envelope(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What every results file begins with: what was measured, when, where and with which versions."""
    from penstock.machine import describe

    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": asdict(describe()),
        "versions": {package: _version(package) for package in _PACKAGES},
        "settings": dict(settings),
    }


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Writes `results`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(results, indent=1, allow_nan=False) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """A results file.

    Raises:
        ValueError: it is of another version.
    """
    results: dict[str, Any] = json.loads(path.read_text())
    if results.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema version {results.get('schema_version')}, not {SCHEMA_VERSION}: measure again")
    return results


def cells_so_far(path: Path, fresh: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells in the results file at `path`, if there is one, for a run that goes on where it ended.

    Args:
        fresh: the envelope of the run that goes on.

    Raises:
        ValueError: what they were measured with is not what there is now.
    """
    if not path.is_file():
        return []
    before = read(path)
    for key in ("benchmark", "commit", "machine", "versions", "settings"):
        if before[key] != fresh[key]:
            raise ValueError(f"{path}: {key} was {before[key]} and is {fresh[key]}: measure all of it again")
    cells: list[dict[str, Any]] = before["cells"]
    return cells


def median(samples: Sequence[float]) -> float | None:
    """The median, or None of nothing."""
    return statistics.median(samples) if samples else None


def lower_bound_seconds(resident_seconds: float, nbytes: float, bytes_per_second: float) -> float:
    """No pass is faster than the resident model computes, or than storage delivers what is streamed."""
    return max(resident_seconds, nbytes / bytes_per_second)


def _commit() -> str | None:
    """The commit measured, with `+` if the working tree differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=FOLDER.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", ".", ":!results")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
