"""A pass without weights and without arithmetic: fake tensors stand in for everything.

It gives order, reads and activation memory before the first byte is loaded. Times are estimated from the
work of each layer until a real pass has measured them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from penstock.recorder import Recorder, heard, listening
from penstock.runtime.binding import BoundWeight
from penstock.signature import map_tensors
from penstock.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("penstock")


def dry_trace(
    root: nn.Module, forward: Callable[..., Any], weights: Sequence[BoundWeight], args: Any, kwargs: Any
) -> Trace | None:
    """Trace a call of `root`, whose own forward is `forward`, with these arguments without computing it.

    Returns None where the module cannot run so: its control flow asks for values that only a real pass has.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # a second of imports that a warm start does not need

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = [nn.Parameter(torch.empty_like(weight.hollow, device="cpu"), requires_grad=False) for weight in weights]
    stand_ins = {fake.untyped_storage()._cdata: index for index, fake in enumerate(fakes)}
    fake_args = map_tensors(args, mode.from_tensor)
    fake_kwargs = map_tensors(kwargs, mode.from_tensor)
    recorder = Recorder(weights, stand_ins=stand_ins, counts_work=True)
    try:
        with torch.no_grad(), _replaced(weights, fakes), mode, listening(recorder, root), recorder:
            heard(recorder, "", forward)(*fake_args, **fake_kwargs)
    except Exception as error:  # whatever stops it, a real pass records the same
        logger.debug("no dry run of %s: %r", type(root).__name__, error)
        return None
    return recorder.trace(is_timed=False)


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
