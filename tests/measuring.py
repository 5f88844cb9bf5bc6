"""Measuring load capacity in tests."""

from __future__ import annotations

import math

import pytest

from penstock import capacity, slowdown, workloads
from penstock.slowdown import Effort
from penstock.workloads import Operator

MIB = 2**20


def measure_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure load capacity in a second, whatever else runs on the machine; what is found is of no interest."""
    monkeypatch.setattr(capacity, "_PROBE_NBYTES", 8 * MIB)
    monkeypatch.setattr(capacity, "EFFORT", Effort(window_seconds=0.0005, seconds=0, most_seconds=0, calls=1))
    monkeypatch.setattr(capacity, "operators", few_operators)
    monkeypatch.setattr(slowdown, "_MEMORY_NBYTES", 8 * MIB)
    monkeypatch.setattr(slowdown, "_DISTURBED", math.inf)
    monkeypatch.setattr(workloads, "_BEYOND_CACHES_NBYTES", MIB // 4)


def few_operators() -> list[Operator]:
    """Two small ones of each class."""
    return [
        workloads._softmax(4, 8),
        workloads._layer_norm(4, 8),
        workloads._linear(1, 64, 64),
        workloads._conv2d(4, 4, 8, 3),
        workloads._gelu(4, 8),
        workloads._add(4, 8),
    ]
