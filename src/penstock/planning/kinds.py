"""Classes of layer calls, by how they take loads beside them: FlashMem's (arXiv 2602.15379, load capacity)."""

from __future__ import annotations

HIERARCHICAL = "hierarchical"
"""Softmax and normalisations."""

REUSABLE = "reusable"
"""Convolutions and matrix products."""

ELEMENTAL = "elemental"
"""Elementwise operations, and whatever else there is."""

SLOWDOWNS = {HIERARCHICAL: 0.0, REUSABLE: 0.2, ELEMENTAL: 3.0}
"""By how much loads may slow a call down, as a part of the time that it takes alone."""
