"""Training inside a byte budget: one iteration is recorded, and what lies idle in it leaves memory meanwhile."""

from penstock.training.api import autoswap
from penstock.training.autoswap import AutoSwap

__all__ = ["AutoSwap", "autoswap"]
