"""Who reads, at moments that no record has, what may be away: modules of an evaluation, and state dicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Bring(Protocol):
    """Has these weights in memory, or everything, state too."""

    def __call__(self, weights: Iterable[torch.Tensor] | None = None) -> None: ...


class Forget(Protocol):
    """The optimizers have other state now."""

    def __call__(self) -> None: ...


class Asking:
    """Hooks by which what may be away is brought back before it is read.

    Args:
        optimizers: whose state dicts are asked for, or loaded.
        bring: called before.
        forget_states: called after one was loaded.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], *, bring: Bring, forget_states: Forget) -> None:
        self._bring = bring
        self._handles: list[RemovableHandle] = []
        for optimizer in optimizers:
            self._handles += [
                optimizer.register_state_dict_pre_hook(lambda _: bring()),
                optimizer.register_load_state_dict_pre_hook(lambda *_: bring()),
                optimizer.register_load_state_dict_post_hook(lambda _: forget_states()),
            ]

    def watch(self, model: nn.Module) -> None:
        """Bring the weights back, too, before modules that have any compute, or give or get their state."""
        for module in model.modules():
            if next(module.parameters(), None) is not None:
                self._handles += [
                    module.register_forward_pre_hook(self._computes),
                    module.register_state_dict_pre_hook(lambda found, *_: self._bring(found.parameters())),
                    module.register_load_state_dict_pre_hook(lambda found, *_: self._bring(found.parameters())),
                ]

    def _computes(self, module: nn.Module, inputs: Any) -> None:
        # An evaluation has no plan, and a module may read what those within it have.
        self._bring(module.parameters(recurse=not torch.is_grad_enabled()))

    def end(self) -> None:
        """Tell nobody any more."""
        while self._handles:
            self._handles.pop().remove()
