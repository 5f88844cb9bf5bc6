"""A checkpoint written anew: weights in the order of their use, aligned for direct reads, converted where need be.

The result is an ordinary Hub folder: safetensors files (one, or shards with their index) and everything else that the
folder held. Large tensors begin at multiples of 4 KiB without any padding tensor; `packing.py` says how.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from penstock.checkpoint import INDEX_SUFFIX, PICKLE_SUFFIXES, Checkpoint, find_weights
from penstock.conversion import Conversion, Keys, Output, check_packed, for_class, in_order, model_class, plain
from penstock.errors import CheckpointError, StorageError, UnsupportedModelError
from penstock.packing import BLOCK_NBYTES, SMALL_NBYTES, arrange, place
from penstock.safetensors_header import parse_json, read_header, read_small_file

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and the bytes there will be."""

MARKER = "penstock_pack.json"
_OTHER_FORMATS = {".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data", ".ot", ".tflite"}
_WEIGHT_SUFFIXES = PICKLE_SUFFIXES | _OTHER_FORMATS | {".safetensors"}
_FLUSH_NBYTES = 32 << 20
_SMALL_FILE_NBYTES = 16 << 20


@dataclass(frozen=True)
class PackReport:
    """What was written.

    `unaligned` names tensors of at least 32 KiB that do not begin at a multiple of 4 KiB; `converted` those that are
    stored as the model has them, not under the checkpoint's names.
    """

    out: Path
    files: tuple[Path, ...]
    tensors: int
    nbytes: int
    unaligned: tuple[str, ...]
    converted: tuple[str, ...]


def pack(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    order: Sequence[str] | None = None,
    dtype: str | torch.dtype | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> PackReport:
    """Write the checkpoint at `path` to the folder `out`, ready to be streamed.

    `order` lists tensor names, the checkpoint's or the model's, in the order of their use; others follow, names that
    are not there are passed over. `dtype` casts floating-point weights, except where the model's class keeps them.
    The class is the one that the folder's `config.json` names; weights that it would not read in place are converted.
    Memory: a few MiB, or one weight where it is converted. `out` appears when it is complete, or not at all;
    `overwrite` replaces an earlier pack of the same checkpoint.

    Raises:
        CheckpointError: `path` is not a sound checkpoint, or changed meanwhile.
        UnsupportedModelError: a conversion whose result the class would convert again.
        StorageError: `out` is taken, or writing failed; nothing is left behind.
    """
    wanted = _dtype(dtype)
    source, target = Path(os.path.abspath(path)), Path(os.path.abspath(out))
    checkpoint = Checkpoint.open(source)
    identity = _identity(checkpoint)
    _check_target(source, target, identity, overwrite)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        with Keys(checkpoint) as keys:
            cls = model_class(source) if source.is_dir() else None
            conversion = for_class(keys, checkpoint, source, cls, wanted) if cls else plain(keys, checkpoint, wanted)
            report = _write(temporary, target, source, keys, conversion, in_order(conversion, order or ()), progress)
        checkpoint.check()
        _copy_rest(source, temporary, conversion, wanted)
        (temporary / MARKER).write_text(json.dumps({"packed": identity}) + "\n")
        if cls:
            check_packed(temporary, cls, conversion, wanted)
        _publish(temporary, target)
    except OSError as error:
        if isinstance(error, CheckpointError | StorageError):
            raise
        reason = error.strerror or str(error)
        raise StorageError(
            f"{target}: writing failed ({reason}); nothing was left there: free space or choose another"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return report


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UnsupportedModelError(f"dtype {dtype!r} is not a floating-point dtype: give one such as 'bfloat16'")
    return found


def _identity(checkpoint: Checkpoint) -> str:
    """What an earlier pack is recognised by: the names, dtypes and shapes that it was made from."""
    lines = sorted(f"{name}\0{source.dtype}\0{source.shape}" for name, source in checkpoint.tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_target(source: Path, target: Path, identity: str, overwrite: bool) -> None:
    real_source, real_target = source.resolve(), target.resolve()
    if real_source == real_target or real_source in real_target.parents or real_target in real_source.parents:
        raise StorageError(f"{target}: lies in, or around, the checkpoint {source}: choose another folder")
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    marker = target / MARKER
    earlier = parse_json(marker, read_small_file(marker, _SMALL_FILE_NBYTES), "text") if marker.is_file() else {}
    if earlier.get("packed") != identity:
        raise StorageError(f"{target}: exists, and is not an earlier pack of this checkpoint: choose another folder")
    if not overwrite:
        raise StorageError(f"{target}: exists already: pass overwrite=True (--overwrite) to replace this earlier pack")


def _write(
    folder: Path,
    target: Path,
    source: Path,
    keys: Keys,
    conversion: Conversion,
    outputs: list[Output],
    progress: Progress | None,
) -> PackReport:
    """Write the safetensors files, and their index if they are several, into `folder`."""
    files = arrange(outputs)
    found = find_weights(source)
    stem = "diffusion_pytorch_model" if found.name.startswith("diffusion_pytorch_model") else "model"
    names = [f"{stem}.safetensors"]
    if len(files) > 1:
        names = [f"{stem}-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    first = found if found.suffix == ".safetensors" else Checkpoint.open(found).files[0].path
    metadata = {"format": "pt", **read_header(first).metadata}
    total = sum(output.nbytes for output in outputs)
    done = 0
    unaligned: list[str] = []
    for name, tensors in zip(names, files, strict=True):
        placed = place(tensors, metadata)
        unaligned += [t.name for t in tensors if t.nbytes >= SMALL_NBYTES and placed.offsets[t.name] % BLOCK_NBYTES]
        with _Sink(folder / name) as sink:
            sink.write(placed.header)
            for tensor in tensors:
                for chunk in keys.chunks(tensor):
                    sink.write(chunk)
                    done += len(chunk)
                    if progress:
                        progress(done, total)
    if len(files) > 1:
        weight_map = {tensor.name: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}{INDEX_SUFFIX}").write_text(json.dumps(index, indent=2) + "\n")
    converted = tuple(output.name for output in outputs if output.computed is not None)
    return PackReport(target, tuple(target / name for name in names), len(outputs), total, tuple(unaligned), converted)


class _Sink:
    """A new file, written through to storage and not left in the page cache."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._unflushed_nbytes = 0

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._file.close()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._unflushed_nbytes += len(data)
        if self._unflushed_nbytes >= _FLUSH_NBYTES:
            self._flush()

    def _flush(self) -> None:
        os.fdatasync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._unflushed_nbytes = 0


def _copy_rest(source: Path, folder: Path, conversion: Conversion, dtype: torch.dtype | None) -> None:
    """Copy what the folder holds besides weights: configuration, tokenizer, and so on; no hidden files."""
    if not source.is_dir():
        return
    for parent, folders, files in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # a folder inside may be a part of the model with weights of its own (sentence-transformers)
        skipped = _WEIGHT_SUFFIXES if Path(parent) == source else _OTHER_FORMATS
        for name in files:
            path = Path(parent) / name
            index = Path(parent) == source and name.endswith((INDEX_SUFFIX, ".bin.index.json"))
            if index or name == MARKER or name.startswith(".") or path.suffix in skipped or not path.is_file():
                continue
            copy = folder / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    config = folder / "config.json"
    if config.is_file() and conversion.config_dtype:
        document = parse_json(config, read_small_file(config, _SMALL_FILE_NBYTES), "text")
        if dtype is not None or ("architectures" in document and not _names_dtype(document)):
            config.write_text(json.dumps(_with_dtype(document, conversion.config_dtype), indent=2) + "\n")


def _names_dtype(config: Mapping[str, Any]) -> bool:
    return any(isinstance(config.get(key), str) for key in ("dtype", "torch_dtype"))


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """`config` with `dtype` wherever it names one, in its parts too; a transformers model's always names it."""

    def changed(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {
            key: dtype if key in ("dtype", "torch_dtype") and isinstance(value, str) else changed(value)
            for key, value in part.items()
        }

    result: dict[str, Any] = changed(config)
    if "architectures" in result and not _names_dtype(result):
        result["dtype"] = dtype
    return result


def _publish(temporary: Path, target: Path) -> None:
    """Put the finished folder in its place; an earlier pack moves aside first, and back if that fails."""
    os.chmod(temporary, 0o777 & ~_umask())
    if not (target.is_dir() and any(target.iterdir())):
        temporary.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        target.rename(aside / "old")
        try:
            temporary.rename(target)
        except OSError:
            (aside / "old").rename(target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
