"""Calls of torch's functions, as they begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_PROPERTIES = ("__get__", "__set__", "__delete__")


class Calls(TorchFunctionMode):
    """Tells of what is given to functions that autograd records.

    A function makes the nodes that will accumulate gradients before it saves anything, and a dispatch mode sees it only
    after that. A weight has to be in memory by then, as nodes keep what their variable was like (torch 2.13).

    Args:
        called: told arguments, before anything else happens.
    """

    def __init__(self, called: Callable[[Any], None]) -> None:
        super().__init__()
        self._called = called

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and getattr(func, "__name__", "") not in _PROPERTIES:
            self._called((args, kwargs))
        return func(*args, **kwargs)
