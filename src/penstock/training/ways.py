"""What `autoswap` may do beside moving activations and the optimizer's state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ways:
    """Options of `autoswap`, which says what they mean; what is not asked for is not done."""

    recompute: bool = False
    parameters: bool = False
    atomic_steps: bool = False
