"""`python -m benchmarks`: every measurement, one after the other, then the README's tables and figures."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.arm import REPOSITORY

STEPS = (
    "run",
    "cold",
    "overhead",
    "planning",
    "prediction",
    "demand_layering",
    "strategies",
    "placement",
    "training",
    "training_plans",
    "report",
)

if __name__ == "__main__":
    for step in STEPS:
        # Processes of their own: none leaves memory or threads to the next.
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{step}"], cwd=REPOSITORY, check=False).returncode
        if code:
            sys.exit(code)
