"""Training by Hugging Face's `Trainer` within a byte budget; needs transformers and accelerate.

No part of `penstock` imports this module: `from penstock.training.trainer import AutoSwapCallback`.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from penstock.budget import Budget
from penstock.errors import StreamStateError, UnsupportedModelError
from penstock.training.api import autoswap
from penstock.training.autoswap import AutoSwap
from penstock.training.ways import Ways

try:
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        f"{error.name} cannot be imported, and training by transformers' Trainer needs it: "
        "pip install 'penstock[trainer]'"
    ) from error

logger = logging.getLogger("penstock")


class AutoSwapCallback(TrainerCallback):  # type: ignore[misc]
    """Has a `Trainer` train within `penstock.autoswap`: `Trainer(..., callbacks=[AutoSwapCallback("2GiB")])`.

    The block begins and ends with training. The Trainer tells nobody that training ended by an exception, so the block
    stays active then, with its hooks, its file, and optimizer state that is away, until `close`, or until training with
    this callback or another one begins.

    Args:
        budget: bytes for parameters, gradients, optimizer state, activations and what kernels need beside them.
        offload_folder: on a local disk; the system's temporary folder if None.
        scores, recompute, parameters, atomic_steps: as for `autoswap`.

    Raises:
        BudgetError: the budget is no size.
    """

    _open: ClassVar[AutoSwapCallback | None] = None  # whose block is active: there is one in a process

    def __init__(
        self,
        budget: int | str | Budget,
        offload_folder: str | Path | None = None,
        scores: str = "best",
        recompute: bool = False,
        parameters: bool = False,
        atomic_steps: bool = False,
    ) -> None:
        self.budget = Budget(budget)
        self._folder, self._scores = offload_folder, scores
        self._ways = Ways(recompute=recompute, parameters=parameters, atomic_steps=atomic_steps)
        self._swap: AutoSwap | None = None

    @property
    def swap(self) -> AutoSwap:
        """The block of the present training, or of the last one: its `plan`, `stats` and `explain()`.

        Raises:
            StreamStateError: no training has begun.
        """
        if self._swap is None:
            raise StreamStateError("no training has begun with this callback")
        return self._swap

    def close(self) -> None:
        """End the block if it is active, as it is after training that ended by an exception.

        Raises:
            StorageError: optimizer state could not be read back, and is lost.
        """
        if AutoSwapCallback._open is self:
            AutoSwapCallback._open = None
            self.swap.__exit__(None, None, None)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, optimizer: torch.optim.Optimizer, **kwargs: Any
    ) -> None:
        """Begin the block; the model and its optimizer are what they will be trained as.

        Raises:
            PlanError: there is no such score.
            StorageError: as for `close`, of a block that was still active.
            StreamStateError: training is within `autoswap` already, or the optimizer is none of torch's.
            UnsupportedModelError: the model is on another device than the CPU.
        """
        stale = AutoSwapCallback._open
        if stale is not None:
            if stale is not self:
                logger.warning("training with another AutoSwapCallback has not ended: its block ends here")
            stale.close()
        for parameter in model.parameters():
            if parameter.device.type != "cpu":
                raise UnsupportedModelError(
                    f"the model is on {parameter.device}, and only what is trained on the CPU can leave memory: "
                    "set TrainingArguments(use_cpu=True)"
                )
        while isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer  # which steps, and whose hooks are called
        swap = autoswap(
            model,
            optimizer,
            budget=self.budget,
            offload_folder=self._folder,
            scores=self._scores,
            **asdict(self._ways),
        )
        self._swap = swap.__enter__()
        AutoSwapCallback._open = self

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the block.

        Raises:
            StorageError: as for `close`.
        """
        self.close()
