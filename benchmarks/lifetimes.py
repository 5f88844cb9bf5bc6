"""What a pass allocates and frees: each storage's bytes, the operation that makes it and the last that may read it.

As `penstock.recorder` counts them, but one by one: lifetimes are all that placing activations takes.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
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
        self._upper[self._live.pop(key)] = self._moment  # the operations that are over may have read it

    def lifetimes(self) -> tuple[Ints, Ints, Ints]:
        """First moments, moments past the last, and sizes in bytes; what was never freed lives to the end."""
        lower = np.array(self._lower, dtype=np.int64)
        upper = np.array([self._moment if end is None else end for end in self._upper], dtype=np.int64)
        nbytes = -(-np.array(self._nbytes, dtype=np.int64) // ALIGNMENT_NBYTES) * ALIGNMENT_NBYTES
        return lower, np.maximum(upper, lower + 1), nbytes


def lifetimes_of(model: Model) -> tuple[Ints, Ints, Ints]:
    """Lifetimes of what one call of `model` allocates. Nothing is computed: fake tensors stand in for all."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    module, mode = skeleton(model), FakeTensorMode(allow_non_fake_inputs=True)
    _make_fake(module, mode)
    inputs = {name: _fake(value, mode) for name, value in model.inputs().items()}
    allocations = Allocations(_storages(module, inputs))
    with torch.no_grad(), mode, allocations:
        result = module(**inputs)
    found = allocations.lifetimes()
    del result  # it lives to the end
    return found


def _make_fake(module: nn.Module, mode: Any) -> None:
    fakes: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                if id(parameter) not in fakes:
                    with mode:
                        fakes[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="cpu"), False)
                each._parameters[name] = fakes[id(parameter)]
        for name, buffer in each._buffers.items():
            each._buffers[name] = _fake(buffer, mode)


def _fake(value: Any, mode: Any) -> Any:
    return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value


def _storages(module: nn.Module, inputs: Mapping[str, Any]) -> set[int]:
    tensors = [*module.parameters(), *module.buffers(), *inputs.values()]
    return {tensor.untyped_storage()._cdata for tensor in tensors if isinstance(tensor, torch.Tensor)}
