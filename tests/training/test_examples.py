"""The example programs train for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_plain_loop_trains_within_its_budget() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "train.py"], capture_output=True, text=True, timeout=200, check=True
    )
    assert "leave memory in each iteration" in done.stdout
    assert " 0 departed from it" in done.stdout
