"""Who reads, at moments that no record has, what may be away: modules of an evaluation, and state dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Bring(Protocol):
    """Has these weights in memory, or everything, state too; `at_once` to compute gradients with."""

    def __call__(self, weights: Iterable[torch.Tensor] | None = None, *, at_once: bool = False) -> None: ...


class Forget(Protocol):
    """The optimizers have other state now."""

    def __call__(self) -> None: ...


class _Hook:
    """A hook whose copy, in the copy of a module, does nothing.

    Args:
        call: what it does.
        copied: called as the module is copied, before those within it are.
    """

    def __init__(self, call: Callable[..., None], copied: Callable[[], None]) -> None:
        self._call, self._copied = call, copied

    def __call__(self, *arguments: Any) -> None:
        self._call(*arguments)

    def __deepcopy__(self, memo: object) -> _Hook:
        self._copied()
        return _Hook(_nothing, _nothing)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_nothing, _nothing)


def _nothing(*_: Any) -> None:
    """What is copied is away from nobody."""


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
        copied = partial(self._gives_state, model)
        for module in model.modules():
            if next(module.parameters(), None) is not None:
                computes, gives_state = (_Hook(call, copied) for call in (self._computes, self._gives_state))
                self._handles += [
                    module.register_forward_pre_hook(computes, prepend=True),
                    module.register_state_dict_pre_hook(gives_state),
                    module.register_load_state_dict_pre_hook(gives_state),
                ]

    def _computes(self, module: nn.Module, *_: Any) -> None:
        # An evaluation has no plan, and a module may read what those within it have.
        is_trained = torch.is_grad_enabled()
        self._bring(module.parameters(recurse=not is_trained), at_once=is_trained)

    def _gives_state(self, module: nn.Module, *_: Any) -> None:
        self._bring(module.parameters())

    def end(self) -> None:
        """Tell nobody any more."""
        while self._handles:
            self._handles.pop().remove()
