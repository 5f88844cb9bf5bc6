"""`penstock.autoswap`: an ordinary training loop within a byte budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from penstock.budget import Budget
from penstock.errors import PlanError, StreamStateError
from penstock.planning.swap import METHODS
from penstock.training.autoswap import AutoSwap
from penstock.training.ways import Ways


def autoswap(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    budget: int | str | Budget,
    offload_folder: str | Path | None = None,
    scores: str = "best",
    recompute: bool = False,
    parameters: bool = False,
    atomic_steps: bool = False,
) -> AutoSwap:
    """Around an ordinary training loop: from the fifth iteration or so on, it stays within `budget`.

    The first iterations run unswapped: they are recorded until two in a row are alike, and two more are timed. From
    then on activations that lie idle, and optimizer state but for its part of a step, are written to a file and read
    back before they are needed; the results are the same to the last bit.

    Args:
        model: what is trained.
        optimizer: what steps it; a sequence where there are several.
        budget: bytes for parameters, gradients, optimizer state, activations and what kernels need beside them.
        offload_folder: on a local disk; the system's temporary folder if None.
        scores: how to choose what leaves: one of `best`, `doa`, `aoa`, `wdoa`, `swdoa`, `weighted` (needs Optuna).
        recompute: whether activations that cheap operations made may be computed again instead of being moved, where no
            gap hides that. For loops that compute the same in each iteration, with the same numbers (no annealed
            factor, no other branch): if one does not, what is computed again is found to differ, and that raises.
        parameters: whether weights and gradients may be away, too, from one use to the next. For loops that look at
            them as they were recorded to, through modules, or through state dicts: whoever else reads one while it is
            away (its norm every hundredth step, an average), or writes to it, gets an error, mostly torch's for tensors
            without data. Its `device` is `meta` then, unless the loop asks for it in each iteration.
        atomic_steps: whether a step is to begin only once all that it uses is in memory, so that no disk that fails can
            leave it half done. Otherwise what it uses comes back part by part, which takes less memory, and an error
            that ends it in its middle says so.

    Raises:
        BudgetError: the budget is no size.
        PlanError: there is no such score.
        StreamStateError: an optimizer is none; or, with `parameters`, the model is a DistributedDataParallel.
        BudgetInfeasibleError: from the step after which it is known: no plan is within the budget.
        StorageError: likewise: the folder has no room.
        StreamStateError: in a backward pass, with `recompute`: what was computed again is not what it was. With
            `parameters`: something was written to while it was away.
    """
    if scores not in METHODS:
        raise PlanError(f"scores={scores!r} is none of {', '.join(METHODS)}")
    if parameters and isinstance(model, nn.parallel.DistributedDataParallel):
        raise StreamStateError(
            "DistributedDataParallel holds the nodes that accumulate gradients, and a weight that leaves gets others: "
            "leave parameters=True out"
        )
    return AutoSwap(
        model,
        _checked([optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)),
        budget=Budget(budget),
        offload_folder=Path(offload_folder).expanduser() if offload_folder is not None else None,
        scores=scores,
        ways=Ways(recompute=recompute, parameters=parameters, atomic_steps=atomic_steps),
    )


def _checked(optimizers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    for found in optimizers:
        if not isinstance(found, torch.optim.Optimizer):
            raise StreamStateError(f"{found!r} is no torch.optim.Optimizer")
    if not optimizers:
        raise StreamStateError("autoswap needs the optimizer of the loop: its steps tell where an iteration ends")
    return optimizers
