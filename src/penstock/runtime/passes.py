"""What holds while a streamed module computes, and what may leave it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch

from penstock.errors import UnsupportedModelError
from penstock.runtime.devices.base import Arena

NO_GRADIENTS = (
    "weights stream for inference, but gradients are wanted: call the module under `with torch.inference_mode():` "
    "(or torch.no_grad()), or call penstock.restore(module) to train it"
)


@contextmanager
def computing() -> Iterator[None]:
    """Around a pass, or a layer that is called outside one."""
    with ExitStack() as stack:
        if torch.is_grad_enabled():
            # Adapters or inputs may want gradients. What is saved for them would point into memory that other weights
            # take, so a backward pass would be silently wrong.
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_refuse_to_save, _refuse_to_save))
        if torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled():
            # It would keep a cast copy of every weight until the end of the caller's autocast block.
            stack.callback(torch.set_autocast_cache_enabled, True)
            torch.set_autocast_cache_enabled(False)
        yield


def _refuse_to_save(_: Any) -> NoReturn:
    raise UnsupportedModelError(NO_GRADIENTS)


def apart(result: Any, arena: Arena) -> Any:
    """`result`, with copies of what lies in `arena`: views of weights whose place others will take.

    Tuples and lists are built anew where something in them changes; mappings change in place.
    """
    if isinstance(result, torch.Tensor):
        return result.clone() if arena.holds(result) else result
    if isinstance(result, list | tuple):
        items = [apart(item, arena) for item in result]
        if all(item is before for item, before in zip(items, result, strict=True)):
            return result
        return type(result)._make(items) if hasattr(result, "_make") else type(result)(items)
    if isinstance(result, MutableMapping):
        for key, item in list(result.items()):
            changed = apart(item, arena)
            if changed is not item:
                result[key] = changed
    return result
