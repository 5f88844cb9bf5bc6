"""What a packed checkpoint holds: the tensors as they were, cast, or converted as the model's library would."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from penstock.checkpoint import Checkpoint, Piece, WeightSource
from penstock.errors import CheckpointError, UnsupportedModelError
from penstock.hub import load_skeleton, problem_of, slots
from penstock.layout import joined, sliced
from penstock.opener import Opener
from penstock.provenance import Ledger, ProvenanceTensor, compute, dtype_name, keys_of
from penstock.safetensors_header import parse_json, read_small_file

CHUNK_NBYTES = 4 << 20
_CONFIG_NBYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class Output:
    """One tensor to write: a checkpoint tensor (`place` among them), or one that is computed from several."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    place: int
    computed: ProvenanceTensor | None = None


class Keys(Ledger):
    """A ledger whose pieces count from checkpoint tensors, and which reads those, cast where the model casts them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(list(checkpoint.files), [], {})
        self.names = list(checkpoint.tensors)
        self._sources = list(checkpoint.tensors.values())
        self._open = ExitStack()
        self._raw = [self._open.enter_context(file.path.open("rb", buffering=0)) for file in checkpoint.files]

    def __enter__(self) -> Keys:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def read(self, piece: Piece) -> bytes:
        """Bytes of one checkpoint tensor, as it is after its cast."""
        source = self._sources[piece.file]
        saved = getattr(torch, source.dtype)
        wanted = (self.casts or {}).get(piece.file, saved)
        begin, end = piece.file_offset, piece.file_offset + piece.nbytes
        if wanted == saved:
            return self._read(source, begin, end)
        size = wanted.itemsize
        raw = self._read(source, begin // size * saved.itemsize, end // size * saved.itemsize)
        return bytes(torch.frombuffer(bytearray(raw), dtype=saved).to(wanted).view(torch.uint8).numpy())

    def _read(self, source: WeightSource, begin: int, end: int) -> bytes:
        data = b""
        for piece in sliced(source.pieces, begin, end):
            file = self._raw[piece.file]
            try:
                part = os.pread(file.fileno(), piece.nbytes, piece.file_offset)
                os.posix_fadvise(file.fileno(), piece.file_offset, piece.nbytes, os.POSIX_FADV_DONTNEED)
            except OSError as error:
                where = self.files[piece.file].path
                raise CheckpointError(f"{where}: reading failed ({error.strerror}): check the drive") from error
            if len(part) != piece.nbytes:
                raise CheckpointError(f"{self.files[piece.file].path}: ended while it was read: save it again")
            data += part
        return data

    def assembled(self, tensor: ProvenanceTensor) -> torch.Tensor:
        """The whole of a tensor that is not lost, in memory."""
        data = bytearray(b"".join(self.read(piece) for piece in tensor.provenance.pieces))
        flat = torch.frombuffer(data, dtype=tensor.dtype) if data else torch.empty(0, dtype=tensor.dtype)
        return flat.reshape(tensor.shape)

    def chunks(self, output: Output) -> Iterator[bytes]:
        """The bytes of `output`, a few MiB at a time; what is computed is in memory as a whole."""
        if output.computed is not None:
            data = compute(output.computed, self.assembled).view(-1).view(torch.uint8).numpy()
            for begin in range(0, len(data), CHUNK_NBYTES):
                yield bytes(data[begin : begin + CHUNK_NBYTES])
            return
        for begin in range(0, output.nbytes, CHUNK_NBYTES):
            yield self.read(Piece(output.place, begin, min(CHUNK_NBYTES, output.nbytes - begin), 0))


@dataclass(frozen=True)
class Conversion:
    """What to write, and what the model's class then finds in it: tensor name -> pieces of outputs."""

    outputs: list[Output]
    expected: dict[str, tuple[tuple[Output, Piece], ...]]
    config_dtype: str | None


def model_class(folder: Path) -> type | None:
    """The transformers or diffusers class that the folder's `config.json` names, if this environment has it."""
    if not (folder / "config.json").is_file():
        return None
    config = parse_json(folder / "config.json", read_small_file(folder / "config.json", _CONFIG_NBYTES), "text")
    named: list[tuple[str, Any]] = [("diffusers", config.get("_class_name"))]
    architectures = config.get("architectures")
    named += [("transformers", name) for name in (architectures if isinstance(architectures, list) else [])[:1]]
    for library, name in named:
        if isinstance(name, str):
            try:
                cls = getattr(importlib.import_module(library), name, None)
            except ImportError:
                continue
            if isinstance(cls, type) and issubclass(cls, torch.nn.Module):
                return cls
    return None


def class_arguments(cls: type, checkpoint: Checkpoint, dtype: torch.dtype | None) -> dict[str, Any]:
    """What to pass to the class's `from_pretrained` so that it keeps, or gets, the dtype."""
    if any(base.__module__.split(".")[0] == "transformers" for base in cls.__mro__):
        return {} if dtype is None else {"dtype": dtype}
    floating = [source for source in checkpoint.tensors.values() if getattr(torch, source.dtype).is_floating_point]
    largest = max(floating, key=lambda source: source.nbytes, default=None)
    saved = getattr(torch, largest.dtype) if largest else None
    return {"torch_dtype": dtype or saved}


def plain(keys: Keys, checkpoint: Checkpoint, dtype: torch.dtype | None) -> Conversion:
    """Every tensor under its own name, floating-point ones cast to `dtype`."""
    assert keys.casts is not None
    if dtype is not None:
        for place, source in enumerate(checkpoint.tensors.values()):
            if getattr(torch, source.dtype).is_floating_point:
                keys.casts[place] = dtype
    return Conversion(_kept(keys, checkpoint, set()), {}, dtype_name(dtype) if dtype else None)


def for_class(keys: Keys, checkpoint: Checkpoint, folder: Path, cls: type, dtype: torch.dtype | None) -> Conversion:
    """What `cls` reads in place: checkpoint tensors under their names where that will do, else converted ones."""
    module = Opener(cls, folder, ledger=keys, **class_arguments(cls, checkpoint, dtype)).load()
    recorded: dict[str, ProvenanceTensor] = {}
    seen: set[int] = set()
    for name, table, key in slots(module):
        tensor = table[key]
        if isinstance(tensor, ProvenanceTensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            recorded[name] = tensor
    converted = _converted(recorded)
    gone = set().union(*(keys_of(recorded[name]) for name in converted)) if converted else set()
    kept = _kept(keys, checkpoint, gone)
    fresh = [
        Output(name, dtype_name(tensor.dtype), tuple(tensor.shape), tensor.numel() * tensor.element_size(), -1, tensor)
        for name, tensor in recorded.items()
        if name in converted
    ]
    clash = {output.name for output in kept} & converted
    if clash:
        raise UnsupportedModelError(
            f"{folder}: {min(clash)} is the name of a converted weight and of another checkpoint tensor: "
            "load the model with its library and save it again"
        )
    by_place = {output.place: output for output in kept}
    expected: dict[str, tuple[tuple[Output, Piece], ...]] = {}
    expected |= {output.name: ((output, Piece(0, 0, output.nbytes, 0)),) for output in fresh}
    for name in recorded.keys() - converted:
        expected[name] = tuple((by_place[piece.file], piece) for piece in recorded[name].provenance.pieces)
    config = getattr(module, "config", None)
    chosen = dtype or getattr(config, "dtype", None)
    return Conversion(kept + fresh, expected, dtype_name(chosen) if isinstance(chosen, torch.dtype) else None)


def check_packed(folder: Path, cls: type, conversion: Conversion, dtype: torch.dtype | None) -> None:
    """Check that `cls` finds in the packed folder, in place, exactly what it would have made of the old one.

    Raises:
        UnsupportedModelError: it would convert again what is already converted.
    """
    packed = Checkpoint.open(folder)
    try:
        skeleton = load_skeleton(cls, folder, **class_arguments(cls, packed, dtype))
    except UnsupportedModelError as error:
        raise _again(cls, str(error)) from error
    where = {file.path: number for number, file in enumerate(packed.files)}
    own = [where[file.path] for file in skeleton.checkpoint.files]
    for name, parts in conversion.expected.items():
        pieces = []
        for output, part in parts:
            pieces.append(sliced(packed.tensors[output.name].pieces, part.file_offset, part.file_offset + part.nbytes))
        source = skeleton.sources.get(name)
        found = source.pieces if source else ()
        if source is None or joined([[replace(piece, file=own[piece.file])] for piece in found]) != joined(pieces):
            raise _again(cls, name)


def _again(cls: type, what: str) -> UnsupportedModelError:
    load = f"{cls.__name__}.from_pretrained"
    return UnsupportedModelError(
        f"{load} would convert again what pack converted ({what}), so it cannot be saved converted: load the model "
        f"with {load} and call penstock.stream(module, budget=...)"
    )


def _kept(keys: Keys, checkpoint: Checkpoint, gone: set[int]) -> list[Output]:
    outputs = []
    for place, (name, source) in enumerate(checkpoint.tensors.items()):
        if place not in gone:
            dtype = (keys.casts or {}).get(place, getattr(torch, source.dtype))
            nbytes = source.nbytes // getattr(torch, source.dtype).itemsize * dtype.itemsize
            outputs.append(Output(name, dtype_name(dtype), source.shape, nbytes, place))
    return outputs


def _converted(recorded: dict[str, ProvenanceTensor]) -> set[str]:
    """The tensors that must be written as the model has them, with all that share a checkpoint tensor with them."""
    converted = {name for name, tensor in recorded.items() if problem_of(tensor)}
    places = {name: keys_of(tensor) for name, tensor in recorded.items()}
    while True:
        used: set[int] = set().union(*(places[name] for name in converted))
        more = {name for name in recorded if name not in converted and places[name] & used}
        if not more:
            return converted
        converted |= more


def in_order(conversion: Conversion, order: Sequence[str]) -> list[Output]:
    """The outputs in the order of `order` (checkpoint keys or the model's own names), what it does not name last."""
    by_name = {output.name: output for output in conversion.outputs}
    ranked: dict[str, Output] = {}
    for name in order:
        parts = [output for output, _ in conversion.expected.get(name, ())]
        parts = parts or ([by_name[name]] if name in by_name else [])
        ranked.update({output.name: output for output in parts if output.name not in ranked})
    ranked.update({name: output for name, output in by_name.items() if name not in ranked})
    return list(ranked.values())
