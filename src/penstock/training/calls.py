"""Calls of torch's functions, as they begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_TELLING = "device"  # of a weight that is away it is another one, and batches are sent there


class Calls(TorchFunctionMode):
    """Tells of what is given to functions that autograd records.

    A function makes the nodes that will accumulate gradients before it saves anything, and a dispatch mode sees it only
    after that. A weight has to be in memory by then, as nodes keep what their variable was like (torch 2.13).

    Args:
        called: told arguments, before anything else happens.
        seen: told of tensors whose device somebody looks at, or that are set something, or set as something.
    """

    def __init__(self, called: Callable[[Any], object], seen: Callable[[Any], object]) -> None:
        super().__init__()
        self._called, self._seen = called, seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            if getattr(func.__self__, "__name__", "") == _TELLING:
                self._seen(args)
        elif name == "__set__":
            if args[1] is not None:  # as gradients are dropped
                self._seen(args)
        elif torch.is_grad_enabled():
            self._called((args, kwargs))
        return func(*args, **kwargs)
