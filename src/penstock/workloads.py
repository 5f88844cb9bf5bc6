"""Operators to measure with: of each class of FlashMem's (section on load capacity), in the sizes that layers have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

_F32_NBYTES = 4
_BEYOND_CACHES_NBYTES = 64 << 20
_MOST_WEIGHTS = 256


@dataclass(frozen=True, slots=True)
class Operator:
    """One operation of one size, in fp32.

    Attributes:
        kind: its class, a key of `planning.problem.SLOWDOWNS`.
        name: what it is, with its sizes.
        weight_nbytes: of what a checkpoint would hold.
        nbytes: that it touches: weights, arguments and result.
        flops: arithmetic operations, multiplications and additions counted apart.
        build: allocates its tensors and gives what computes it once.
    """

    kind: str
    name: str
    weight_nbytes: int
    nbytes: int
    flops: int
    build: Callable[[], Callable[[], object]]


def operators() -> list[Operator]:
    """All that is measured: 0.02 to 5 ms each on two cores, since longer calls are rarely left undisturbed."""
    return [
        *(_softmax(*size) for size in ((256, 128), (1024, 256), (2048, 512), (8192, 512))),
        *(_layer_norm(*size) for size in ((128, 1024), (512, 1024), (1024, 1024), (2048, 1024))),
        *(_linear(*size) for size in ((1, 1024, 1024), (1, 1024, 4096), (8, 1024, 1024), (64, 1024, 1024))),
        *(_conv2d(*size) for size in ((1024, 256, 14, 1), (64, 64, 28, 3), (64, 64, 56, 3), (256, 256, 14, 3))),
        *(_gelu(*size) for size in ((128, 1024), (128, 4096), (512, 4096), (1024, 4096))),
        *(_add(*size) for size in ((128, 1024), (512, 1024), (2048, 1024), (4096, 1024))),
    ]


def _softmax(rows: int, width: int) -> Operator:
    return _on_rows("hierarchical", "softmax", rows, width, 5, lambda x: functional.softmax(x, dim=-1))


def _layer_norm(rows: int, width: int) -> Operator:
    return _on_rows("hierarchical", "layer norm", rows, width, 8, lambda x: functional.layer_norm(x, (width,)))


def _gelu(rows: int, width: int) -> Operator:
    return _on_rows("elemental", "gelu", rows, width, 10, functional.gelu)


def _add(rows: int, width: int) -> Operator:
    return _on_rows("elemental", "add", rows, width, 1, lambda x: x + 1.0)


def _on_rows(
    kind: str, name: str, rows: int, width: int, flops: int, compute: Callable[[torch.Tensor], object]
) -> Operator:
    def build() -> Callable[[], object]:
        rows_of = torch.randn(rows, width)
        return lambda: compute(rows_of)

    count = rows * width
    return Operator(kind, f"{name} {rows}x{width}", 0, 2 * count * _F32_NBYTES, flops * count, build)


def _linear(rows: int, inputs: int, outputs: int) -> Operator:
    def build() -> Callable[[], object]:
        weights, x = _rotating(outputs, inputs), torch.randn(rows, inputs)
        return lambda: functional.linear(x, next(weights))

    weight_nbytes = inputs * outputs * _F32_NBYTES
    nbytes = weight_nbytes + rows * (inputs + outputs) * _F32_NBYTES
    name = f"linear {rows}x{inputs}x{outputs}"
    return Operator("reusable", name, weight_nbytes, nbytes, 2 * rows * inputs * outputs, build)


def _conv2d(inputs: int, outputs: int, side: int, kernel: int) -> Operator:
    def build() -> Callable[[], object]:
        weights, x = _rotating(outputs, inputs, kernel, kernel), torch.randn(1, inputs, side, side)
        return lambda: functional.conv2d(x, next(weights), padding=kernel // 2)

    count = inputs * outputs * kernel**2
    nbytes = (count + (inputs + outputs) * side**2) * _F32_NBYTES
    name = f"conv2d {inputs}x{outputs}x{kernel}x{kernel} on {side}x{side}"
    return Operator("reusable", name, count * _F32_NBYTES, nbytes, 2 * count * side**2, build)


def _rotating(*shape: int) -> itertools.cycle[torch.Tensor]:
    """Weights of one shape in turn, more than caches hold: a pass meets each of its weights once."""
    nbytes = math.prod(shape) * _F32_NBYTES
    count = min(max(-(-_BEYOND_CACHES_NBYTES // nbytes), 2), _MOST_WEIGHTS)
    return itertools.cycle([torch.randn(shape) for _ in range(count)])
