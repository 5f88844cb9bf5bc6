"""In what order and in how many files packed tensors lie: plain arithmetic.

Safetensors data has no holes, and a padding tensor would be an unexpected key to whoever loads the folder. So a
tensor can only be aligned if everything before it in its file adds up to whole blocks: a header is padded with spaces
to a whole block, tensors of whole blocks follow each other, and a large tensor of another size ends its file; the
next tensor starts a new one. Tensors under 32 KiB, which are never streamed, come last of all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from penstock.safetensors_header import METADATA_KEY, TORCH_DTYPES

BLOCK_NBYTES = 4096
SMALL_NBYTES = 32768
MAX_FILES = 32
_FORMAT = {torch_name: (name, itemsize) for name, (torch_name, itemsize) in TORCH_DTYPES.items()}


class Packed(Protocol):
    """What is packed: a name, torch's dtype name, a shape and a length in bytes."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Packed)


@dataclass(frozen=True)
class Placed:
    """A file's header (with the 8 bytes of its length) and each of its tensors' offset from the file's start."""

    header: bytes
    offsets: Mapping[str, int]


def arrange(tensors: Iterable[T]) -> list[list[T]]:
    """`tensors`, in the order of their use, as the files that hold them."""
    files: list[list[T]] = []
    current: list[T] = []
    rest: list[T] = []
    for tensor in tensors:
        if tensor.nbytes < SMALL_NBYTES:
            rest.append(tensor)
        elif tensor.nbytes % BLOCK_NBYTES == 0:
            current.append(tensor)
        elif len(files) < MAX_FILES - 1:
            files.append([*current, tensor])
            current = []
        else:
            rest.append(tensor)
    rest.sort(key=lambda tensor: -_FORMAT[tensor.dtype][1])  # each then lies at a multiple of its element's size
    return [*files, [*current, *rest]] if current or rest or not files else files


def place(tensors: Sequence[Packed], metadata: Mapping[str, str]) -> Placed:
    """The header of a file that holds `tensors` one after another, and where they lie in it."""
    entries: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    position = 0
    begins = {}
    for tensor in tensors:
        end = position + tensor.nbytes
        dtype = _FORMAT[tensor.dtype][0]
        entries[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        begins[tensor.name] = position
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % BLOCK_NBYTES)
    start = 8 + len(text)
    return Placed(len(text).to_bytes(8, "little") + text, {name: start + begin for name, begin in begins.items()})
