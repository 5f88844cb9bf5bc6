"""Every change to a module is undone, in reverse, to the last attribute."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from penstock.runtime.attachment import Attachment

from ..streaming import counted_memory, stream_tightly  # noqa: TID252
from ..zoo import Block, Tied, X, tokens  # noqa: TID252

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")


def state_of(module: nn.Module) -> dict[str, Any]:
    """All that hangs on every module: attributes, hooks, class, the kind of its parameter dictionary."""
    return {
        name: (
            type(child),
            type(child._parameters),
            {key: id(value) for key, value in vars(child).items() if key != "_parameters"},
            {key: len(value) for key, value in vars(child).items() if key.endswith("_hooks") and value is not None},
            {key: id(parameter) for key, parameter in child._parameters.items()},
        )
        for name, child in module.named_modules()
    }


@pytest.mark.parametrize(
    ("build", "example"),
    [(lambda: nn.Sequential(*[Block() for _ in range(4)]), X), (Tied, tokens(1))],
    ids=["blocks", "tied table"],
)
def test_after_restore_nothing_hangs_on_any_module(build: Any, example: torch.Tensor) -> None:
    module = build()
    before = state_of(module)
    for _ in range(2):
        stream_tightly(module, (example,))
        with torch.inference_mode():
            module(example)
        assert state_of(module) != before
        penstock.restore(module)
        assert state_of(module) == before


def test_a_forward_that_was_wrapped_before_is_wrapped_again_afterwards() -> None:
    module = nn.Sequential(Block(), Block(), Block())
    calls = []

    def counted(forward: Any, *args: Any) -> Any:
        calls.append(1)
        return forward(*args)

    own = functools.partial(counted, module[1].forward)
    module[1].forward = own
    root = functools.partial(counted, module.forward)
    module.forward = root
    stream_tightly(module, (X,), plan_now=False)
    with torch.inference_mode():
        module(X)
    assert len(calls) >= 2
    penstock.restore(module)
    assert module[1].forward is own
    assert module.forward is root


def test_attributes_are_set_and_put_back() -> None:
    module = nn.Linear(2, 2)
    attachment = Attachment(module)
    undo_new = attachment.set_attribute(module, "new", 1)
    undo_old = attachment.set_attribute(module, "in_features", 5)
    assert (module.new, module.in_features) == (1, 5)
    undo_old()
    undo_new()
    assert module.in_features == 2
    assert not hasattr(module, "new")


def test_modules_keep_their_class_and_representation_while_streamed() -> None:
    module = nn.Sequential(*[Block() for _ in range(3)])
    shown, kinds = repr(module), [type(child) for child in module.modules()]
    stream_tightly(module, (X,))
    assert repr(module) == shown
    assert [type(child) for child in module.modules()] == kinds
    assert module.eval() is module
    assert module.train() is module
    penstock.restore(module)
