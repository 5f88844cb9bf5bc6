"""What a pass allocates and frees: each storage's bytes, the operation that makes it and the one after which it is gone.

As `penstock.recorder` counts them, but one by one: lifetimes are all that placing activations takes.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.model import Model
from benchmarks.ways import skeleton

ALIGNMENT_NBYTES = 64  # as torch allocates on the CPU
Ints = npt.NDArray[np.int64]


class Allocations(TorchDispatchMode):
    """Active during the recorded pass. A moment is an operation.

    Args:
        known: storages that are there before, which the pass does not allocate.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self._known, self._moment = known, 0
        self._live: dict[int, int] = {}
        self._lower: list[int] = []
        self._upper: list[int | None] = []
        self._nbytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        self._moment += 1
        return result

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known or key in self._live or storage.nbytes() == 0:
            return
        self._live[key] = len(self._nbytes)
        self._lower.append(self._moment)
        self._upper.append(None)
        self._nbytes.append(storage.nbytes())
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self._upper[self._live.pop(key)] = self._moment + 1  # the operation that runs now may still read it

    def lifetimes(self) -> tuple[Ints, Ints, Ints]:
        """First moments, moments after the last and sizes in bytes; what was never freed lives to the end."""
        upper = [self._moment + 1 if end is None else end for end in self._upper]
        nbytes = -(-np.array(self._nbytes, dtype=np.int64) // ALIGNMENT_NBYTES) * ALIGNMENT_NBYTES
        return np.array(self._lower, dtype=np.int64), np.array(upper, dtype=np.int64), nbytes


def lifetimes_of(model: Model) -> tuple[Ints, Ints, Ints]:
    """Lifetimes of what one call of `model` allocates. Nothing is computed: fake tensors stand in for all."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    module, inputs = skeleton(model), model.inputs()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                with mode:
                    fake = torch.empty_like(parameter, device="cpu")
                each._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = mode.from_tensor(buffer)
    fakes = {name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    present = [*module.parameters(), *module.buffers(), *(one for one in fakes.values() if isinstance(one, torch.Tensor))]
    allocations = Allocations({tensor.untyped_storage()._cdata for tensor in present})
    with torch.no_grad(), mode, allocations:
        result = module(**fakes)
    found = allocations.lifetimes()
    del result
    return found
