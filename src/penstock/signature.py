"""The shape of a call: what decides how much memory its activations take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_MAX_DEPTH = 6
_OF_ARGUMENTS = 2


@dataclass(frozen=True, slots=True)
class Signature:
    """Shapes and dtypes of every tensor among a call's arguments, by where they stand, and the switches set.

    Tensors inside lists, dictionaries and key-value caches count too.
    """

    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    switches: tuple[tuple[str, str], ...]
    nbytes: int

    @classmethod
    def of(cls, args: Any, kwargs: Any) -> Signature:
        """The signature of a call with these arguments."""
        tensors, switches, nbytes = [], [], 0
        for place, value in _walk((args, kwargs), "", 0):
            if isinstance(value, torch.Tensor):
                tensors.append((place, str(value.dtype), tuple(value.shape)))
                nbytes += value.numel() * value.element_size()
            else:
                switches.append((place, str(value)))
        return cls(tuple(tensors), tuple(switches), nbytes)

    def growth_to(self, other: Signature) -> float | None:
        """How many times as much of anything a call like `other` may need as one like this; None if unlike.

        Layers allocate at most in proportion to two growing dimensions (attention scores), so the factor is the
        square of the product of the distinct dimensions' growth; 1.0 where nothing grew. A dimension that is 1 on one
        side only makes the calls unlike: single rows go through other kernels.
        """
        if self.switches != other.switches or len(self.tensors) != len(other.tensors):
            return None
        grown: dict[tuple[int, int, int], float] = {}
        for (place, dtype, shape), (other_place, other_dtype, other_shape) in zip(
            self.tensors, other.tensors, strict=True
        ):
            if (place, dtype, len(shape)) != (other_place, other_dtype, len(other_shape)):
                return None
            pairs = list(zip(shape, other_shape, strict=True))
            for index, (size, other_size) in enumerate(pairs):
                if (size == 1) != (other_size == 1) or size == 0 != other_size:
                    return None
                if other_size > size:
                    # The same growth in several tensors is one dimension's; twice in one tensor it is two dimensions'.
                    grown[size, other_size, pairs[:index].count((size, other_size))] = other_size / size
        factor = 1.0
        for ratio in grown.values():
            factor *= ratio
        return factor * factor

    @property
    def digest(self) -> str:
        """A short name for it."""
        return hashlib.sha256(repr((self.tensors, self.switches)).encode()).hexdigest()[:16]


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor], depth: int = 0) -> Any:
    """`value` with every tensor in it changed; containers and caches are copied, nothing else is."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if depth > _MAX_DEPTH:
        return value
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(map_tensors(item, change, depth + 1) for item in value)
    if isinstance(value, dict) and type(value) is dict:
        return {key: map_tensors(item, change, depth + 1) for key, item in value.items()}
    if _is_state(value):
        copy = object.__new__(type(value))
        for key, item in vars(value).items():
            object.__setattr__(copy, key, map_tensors(item, change, depth + 1))
        return copy
    return value


def _is_state(value: Any) -> bool:
    """Objects that carry tensors from call to call: transformers' caches and their layers."""
    return "Cache" in type(value).__name__ or any("Cache" in base.__name__ for base in type(value).__mro__[1:-1])


def _walk(value: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor) or value is None or isinstance(value, bool | str | torch.dtype):
        yield place, value
    elif isinstance(value, int) and depth == _OF_ARGUMENTS:
        yield place, str(value) if value in (0, 1) else "several"  # how many logits to keep, steps to make
    elif depth > _MAX_DEPTH or isinstance(value, int | float):
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{place}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _walk(item, f"{place}[{index}]", depth + 1)
    elif _is_state(value):
        for key, item in vars(value).items():
            if not isinstance(item, bool | str | type(None)):
                yield from _walk(item, f"{place}.{key}", depth + 1)
