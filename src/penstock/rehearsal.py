"""What generating a text asks of a streamed model, planned for before it begins.

The key-value cache grows with every token, so the last token's call needs most memory. It is found by letting
transformers generate two tokens from a text that is as long as the result will be, with nothing computed: then what is
planned has room for every call in between, and nothing has to be planned again between tokens.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

import penstock
from penstock.errors import BudgetInfeasibleError, PenstockError
from penstock.signature import map_tensors

logger = logging.getLogger("penstock")


def reserve(module: Any, inputs: Mapping[str, torch.Tensor], max_new_tokens: int) -> None:
    """Plan so that `module.generate(**inputs, max_new_tokens=max_new_tokens)` fits from the first token to the last.

    Where the calls cannot be found out, they are planned for as they come.

    Args:
        module: a streamed causal language model of transformers.
        inputs: tensors of shape `(1, tokens)`, as its tokenizer gives them.

    Raises:
        BudgetInfeasibleError: it does not fit; `needed_nbytes` is what both the prompt and the last token need.
    """
    handle = penstock.inspect(module)
    refusals = []
    for call in list(_last_and_first_call(module, inputs, max_new_tokens)):  # all, before anything is loaded
        try:
            handle.prepare(((), call))
        except BudgetInfeasibleError as error:
            refusals.append(error)
    if refusals:
        raise max(refusals, key=lambda error: error.needed_nbytes)


def _last_and_first_call(
    module: Any, inputs: Mapping[str, torch.Tensor], max_new_tokens: int
) -> Iterator[dict[str, Any]]:
    """Keyword arguments of the call that gives the last token, which mostly needs most, and of the prompt's."""
    if max_new_tokens > 1:
        # The last call sees everything but the last token; the rehearsed one before it takes all but two.
        last = _rehearse(module, _lengthened(inputs, max_new_tokens - 2), 2)
        if last is not None:
            yield last
    first = _rehearse(module, inputs, 1)
    if first is not None:
        yield first


def _lengthened(inputs: Mapping[str, torch.Tensor], tokens: int) -> dict[str, torch.Tensor]:
    return {name: torch.cat([row, row[:, -1:].expand(-1, tokens)], dim=1) for name, row in inputs.items()}


def _rehearse(module: Any, inputs: Mapping[str, torch.Tensor], number: int) -> dict[str, Any] | None:
    """Keyword arguments of the call that gives the token `number`, 1 or 2; None if transformers has other ways."""
    try:
        with _listening(module, number):
            module.generate(**inputs, max_new_tokens=number, min_new_tokens=number, num_beams=1, do_sample=False)
    except _Heard as heard:
        return heard.call
    except PenstockError:
        raise
    except Exception as error:  # models prepare their calls as they like
        logger.debug("generation of %s cannot be rehearsed: %r", type(module).__name__, error)
    return None


class _Heard(Exception):
    """Ends a rehearsal: it has come to the call that was asked for."""

    def __init__(self, call: dict[str, Any]) -> None:
        self.call = call


@contextmanager
def _listening(module: Any, number: int) -> Iterator[None]:
    """Answer calls of the module with what they would return, but with empty memory, until the one asked for."""
    streamed = module.forward
    calls = 0

    @functools.wraps(streamed)  # transformers looks at its parameters
    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise _Heard(kwargs)
        result = penstock.inspect(module).result_like(args, kwargs)
        for name, value in result.items():
            result[name] = map_tensors(value, _unwritten)
        result.logits[:, -1].zero_()
        return result

    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__["forward"] = streamed


def _unwritten(tensor: torch.Tensor) -> torch.Tensor:
    """Of the same shape, in pages that nothing writes to: they take no memory. A single number may be computed with."""
    return (torch.zeros if tensor.numel() == 1 else torch.empty)(tensor.shape, dtype=tensor.dtype)
