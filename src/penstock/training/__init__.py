"""Training inside a byte budget: one iteration is recorded, and what lies idle in it leaves memory meanwhile."""

from penstock.training.autoswap import AutoSwap, autoswap

__all__ = ["AutoSwap", "autoswap"]
