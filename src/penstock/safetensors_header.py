"""The header of one safetensors file, read as untrusted input.

The format (huggingface/safetensors, README "Format"): 8 bytes little-endian header length N, N bytes of JSON that
start with `{` and may end in spaces, then the tensors' bytes, contiguous and without holes up to the end of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from penstock.errors import CheckpointError

MAX_HEADER_NBYTES = 100_000_000  # what the reference implementation allows
MAX_DIMENSIONS = 64  # what torch allows
METADATA_KEY = "__metadata__"

TORCH_DTYPES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "BOOL": ("bool", 1),
        "U8": ("uint8", 1),
        "I8": ("int8", 1),
        "F8_E4M3": ("float8_e4m3fn", 1),
        "F8_E5M2": ("float8_e5m2", 1),
        "F8_E8M0": ("float8_e8m0fnu", 1),
        "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
        "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
        "U16": ("uint16", 2),
        "I16": ("int16", 2),
        "F16": ("float16", 2),
        "BF16": ("bfloat16", 2),
        "U32": ("uint32", 4),
        "I32": ("int32", 4),
        "F32": ("float32", 4),
        "U64": ("uint64", 8),
        "I64": ("int64", 8),
        "F64": ("float64", 8),
        "C64": ("complex64", 8),
    }
)
"""The format's dtype name -> torch's name and bytes per element."""

DAMAGED = "download or save the file again"
PICKLE_REMEDY = (
    "refused: unpickling can run any code that the file holds. Convert it where you trust it: "
    "`safetensors.torch.save_file(torch.load(old, weights_only=True), new)`, or for a transformers model "
    "`model.save_pretrained(folder, safe_serialization=True)`"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: torch's dtype name, its shape, and its bytes' first offset from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    file_offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a file's header says: its tensors in the order of their bytes, its metadata, and the header's digest."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    sha256: str


def read_header(path: Path) -> Header:
    """The header of the safetensors file at `path`, with everything in it checked against the format and the file.

    Raises:
        CheckpointError: the file is missing, truncated, not safetensors, or contradicts itself.
    """
    raw, file_nbytes = _read_raw(path)
    document = parse_json(path, raw, "header")
    metadata = _metadata(path, document.pop(METADATA_KEY, {}))
    data_start = 8 + len(raw)
    found = [(name, _entry(path, name, value, data_start, file_nbytes)) for name, value in document.items()]
    found.sort(key=lambda item: (item[1].file_offset, item[1].nbytes))
    _check_contiguous(path, found, data_start, file_nbytes)
    return Header(MappingProxyType(dict(found)), MappingProxyType(metadata), hashlib.sha256(raw).hexdigest())


def parse_json(path: Path, raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `raw`, with no key twice and no text that is not valid Unicode."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            _fail(path, f"key {twice!r} stands twice in its {what}", DAMAGED)
        return document

    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
        json.dumps(document, ensure_ascii=False).encode("utf-8")  # a lone surrogate passes json but not UTF-8
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        _fail(path, f"its {what} is not JSON ({error})", DAMAGED)
    if not isinstance(document, dict):
        _fail(path, f"its {what} is a JSON {type(document).__name__}, not an object", DAMAGED)
    return document


def read_small_file(path: Path, max_nbytes: int) -> bytes:
    """All bytes of the regular file at `path`, if they are at most `max_nbytes`."""
    nbytes = file_status(path).st_size
    if nbytes > max_nbytes:
        _fail(path, f"it is {nbytes} bytes long, more than the {max_nbytes} allowed", DAMAGED)
    try:
        with path.open("rb") as file:
            return file.read(max_nbytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}): check the file") from error


def file_status(path: Path) -> os.stat_result:
    """`stat` of `path`, following symlinks, refusing what is missing or not a regular file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}): check the path") from error
    if not stat.S_ISREG(status.st_mode):
        _fail(path, "it is not a regular file", "give a safetensors file or a folder that holds one")
    return status


def _fail(path: Path, problem: str, remedy: str) -> NoReturn:
    raise CheckpointError(f"{path}: {problem}: {remedy}")


def _read_raw(path: Path) -> tuple[bytes, int]:
    """The header's bytes and the file's length."""
    file_nbytes = file_status(path).st_size
    if file_nbytes < 8:
        _fail(path, f"it is {file_nbytes} bytes long, too short for a safetensors file", DAMAGED)
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            if prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
                raise CheckpointError(f"{path}: a pickle file under a safetensors name is {PICKLE_REMEDY}")
            nbytes = int.from_bytes(prefix, "little")
            if nbytes > MAX_HEADER_NBYTES:
                _fail(path, f"header length {nbytes} is above {MAX_HEADER_NBYTES}: not a safetensors file", DAMAGED)
            if nbytes > file_nbytes - 8:
                _fail(path, f"header length {nbytes} exceeds the file's {file_nbytes} bytes: truncated", DAMAGED)
            raw = file.read(nbytes)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}): check the file") from error
    if len(raw) != nbytes:
        _fail(path, f"header length {nbytes}, but only {len(raw)} bytes follow: truncated", DAMAGED)
    if not raw.startswith(b"{"):
        _fail(path, f"its header starts with {raw[:1]!r}, not '{{': not a safetensors file", DAMAGED)
    return raw, file_nbytes


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _fail(path, f"key {METADATA_KEY!r} is not a map of text to text", DAMAGED)
    return value


def _entry(path: Path, name: str, value: Any, data_start: int, file_nbytes: int) -> Entry:
    """The tensor that `value` describes, its numbers checked on their own."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _fail(path, f"key {name!r} must hold dtype, shape and data_offsets, not {_short(value)}", DAMAGED)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TORCH_DTYPES:
        known = ", ".join(TORCH_DTYPES)
        _fail(path, f"key {name!r} has dtype {_short(dtype)}, which is not read", f"convert it to one of {known}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        _fail(path, f"key {name!r} has shape {_short(shape)}, not a list of up to {MAX_DIMENSIONS} sizes", DAMAGED)
    if not _is_sizes(offsets) or len(offsets) != 2:
        _fail(path, f"key {name!r} has data_offsets {_short(offsets)}, not two offsets", DAMAGED)
    begin, end = offsets
    data_nbytes = file_nbytes - data_start
    if not begin <= end <= data_nbytes:
        _fail(path, f"key {name!r} has data_offsets {offsets} outside the file's {data_nbytes} data bytes", DAMAGED)
    torch_dtype, itemsize = TORCH_DTYPES[dtype]
    if _product(shape, data_nbytes) * itemsize != end - begin:
        _fail(path, f"key {name!r}: shape {_short(shape)} of {dtype} does not take {end - begin} bytes", DAMAGED)
    return Entry(torch_dtype, tuple(shape), data_start + begin, end - begin)


def _check_contiguous(path: Path, found: list[tuple[str, Entry]], data_start: int, file_nbytes: int) -> None:
    """No overlap and no hole, up to the end of the file."""
    position = data_start
    for name, entry in found:
        if entry.file_offset != position:
            what = "overlaps the tensor before it" if entry.file_offset < position else "leaves a hole before it"
            begin = entry.file_offset - data_start
            _fail(path, f"key {name!r} {what} (begins at {begin}, not {position - data_start})", DAMAGED)
        position += entry.nbytes
    if position != file_nbytes:
        _fail(path, f"its tensors end at byte {position}, but the file is {file_nbytes} bytes long", DAMAGED)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _product(shape: list[int], limit: int) -> int:
    """The element count, or something above `limit` as soon as that is certain: a hostile shape costs nothing."""
    if 0 in shape:
        return 0
    count = 1
    for size in shape:
        count *= size
        if count > limit:
            return limit + 1
    return count


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
