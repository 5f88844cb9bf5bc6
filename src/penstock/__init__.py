"""Run PyTorch models inside a hard byte budget: weights stream from the checkpoint while layers compute."""

from penstock.api import from_pretrained, inspect, plan, restore, stream, sweep
from penstock.budget import Budget
from penstock.errors import (
    BudgetError,
    BudgetInfeasibleError,
    CheckpointError,
    CheckpointMismatchError,
    PenstockError,
    PlanError,
    StorageError,
    StreamStateError,
    UnsupportedModelError,
)
from penstock.planning import Plan
from penstock.report import Curve
from penstock.stream import Stream
from penstock.training import AutoSwap, autoswap

__all__ = [
    "AutoSwap",
    "Budget",
    "BudgetError",
    "BudgetInfeasibleError",
    "CheckpointError",
    "CheckpointMismatchError",
    "Curve",
    "PenstockError",
    "Plan",
    "PlanError",
    "StorageError",
    "Stream",
    "StreamStateError",
    "UnsupportedModelError",
    "autoswap",
    "from_pretrained",
    "inspect",
    "plan",
    "restore",
    "stream",
    "sweep",
]
__version__ = "0.1.0"
