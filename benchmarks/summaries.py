"""Numbers that stand for many: pure functions of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def absolute_errors(cells: Sequence[dict[str, Any]], name: str) -> list[float]:
    """By how much predictions are off, as shares of what was measured, ascending; `name` says which error."""
    return sorted(abs(cell[name]) for cell in cells if cell["status"] == "ok")


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
