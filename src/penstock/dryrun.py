"""A pass without weights and without arithmetic: fake tensors stand in for everything.

It gives order, reads and activation memory before the first byte is loaded. Times are estimated from the
work of each layer until a real pass has measured them.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from penstock.errors import UnsupportedModelError
from penstock.listening import heard, listening
from penstock.recorder import Recorder
from penstock.runtime.binding import BoundWeight
from penstock.signature import Signature, map_tensors
from penstock.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("penstock")


@functools.cache
def prepare() -> None:
    """What a process does once for all of its dry runs: a second of imports, and the caches of common operations."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.no_grad(), FakeTensorMode() as mode:
        rows = mode.from_tensor(torch.ones(2, 4))
        torch.nn.functional.linear(rows, torch.ones(4, 4), torch.ones(4)).relu().softmax(-1).transpose(0, 1).reshape(-1)


def dry_trace(
    root: nn.Module, forward: Callable[..., Any], weights: Sequence[BoundWeight], args: Any, kwargs: Any
) -> Trace | None:
    """Trace a call of `root`, whose own forward is `forward`, with these arguments without computing it.

    Returns None where the module cannot run so: its control flow asks for values that only a real pass has, or hooks,
    which are other people's code, would be shown tensors without data.
    """
    found = _dry_run(root, forward, weights, args, kwargs)
    if found is None:
        return None
    return found[0].trace(is_timed=False, arguments_nbytes=Signature.of(args, kwargs).nbytes)


def dry_result(
    root: nn.Module, forward: Callable[..., Any], weights: Sequence[BoundWeight], args: Any, kwargs: Any
) -> Any:
    """What such a call would return, in fake tensors, which have shapes and no data; None as for `dry_trace`."""
    found = _dry_run(root, forward, weights, args, kwargs)
    return found[1] if found is not None else None


def _dry_run(
    root: nn.Module, forward: Callable[..., Any], weights: Sequence[BoundWeight], args: Any, kwargs: Any
) -> tuple[Recorder, Any] | None:
    if any(module._forward_hooks or module._forward_pre_hooks for module in root.modules() if module is not root):
        return None
    from torch._subclasses.fake_tensor import FakeTensorMode  # not before a warm start, which does without

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = [nn.Parameter(torch.empty_like(weight.hollow, device="cpu"), requires_grad=False) for weight in weights]
    stand_ins = {fake.untyped_storage()._cdata: index for index, fake in enumerate(fakes)}
    fake_args = map_tensors(args, mode.from_tensor)
    fake_kwargs = map_tensors(kwargs, mode.from_tensor)
    recorder = Recorder(weights, stand_ins=stand_ins, counts_work=True)
    try:
        with (
            _quiet(),
            unchanged(root),
            torch.no_grad(),
            _replaced(weights, fakes),
            mode,
            listening(recorder, root),
            recorder,
        ):
            result = heard(recorder, "", forward)(*fake_args, **fake_kwargs)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever stops it, a real pass records the same
        logger.debug("no dry run of %s: %r", type(root).__name__, error)
        return None
    return recorder, result


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs an error where a fake kernel refuses; here that is no error."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def unchanged(root: nn.Module) -> Iterator[None]:
    """Give every module below `root` the attributes back that it had, and the generators their states.

    A pass may keep tensors for the next one: in attributes, in buffers, in lists and dictionaries.
    """
    before = [
        (module, dict(vars(module)), dict(module._buffers), [_copied(value) for value in vars(module).values()])
        for module in root.modules()
    ]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for module, _, buffers, _ in before:
        # Fake tensors of one element compute with the value that they stand for, in place too.
        module._buffers.update({name: b.clone() for name, b in buffers.items() if b is not None and b.numel() == 1})
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for module, attributes, buffers, containers in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
            for copied in containers:
                if copied is not None:
                    copied()


def _copied(value: Any) -> Callable[[], None] | None:
    """What puts the contents of a plain container back."""
    if type(value) is list:
        items = list(value)
        return lambda: value.__setitem__(slice(None), items)
    if type(value) is dict or type(value) is set:
        content = value.copy()

        def put_back() -> None:
            value.clear()
            value.update(content)

        return put_back
    return None


@contextmanager
def _replaced(weights: Sequence[BoundWeight], fakes: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let every owner hold the stand-in. Assignment through the module keeps flat weight lists of RNNs in step."""
    try:
        for weight, fake in zip(weights, fakes, strict=True):
            _assign(weight, fake)
        yield
    finally:
        for weight in weights:
            _assign(weight, weight.parameter)


def _assign(weight: BoundWeight, parameter: nn.Parameter) -> None:
    for module, attribute in weight.owners:
        if isinstance(module, nn.RNNBase):
            setattr(module, attribute, parameter)
        else:
            module._parameters[attribute] = parameter
