"""The example programs train for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def output(name: str) -> str:
    """What an example prints."""
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=200, check=True)
    return done.stdout


def test_the_plain_loop_trains_within_its_budget() -> None:
    found = output("train.py")
    assert "leave memory in each iteration" in found
    assert " 0 departed from it" in found


def test_a_trainer_of_transformers_trains_within_its_budget() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate, which is not installed")
    found = output("train_transformers.py")
    assert "leave memory in each iteration" in found
    assert "\n0 storages" not in found
    assert " 0 departed from it" in found
