"""Safetensors files -> where each weight's bytes are.

Everything here is untrusted input: headers, indices and names are checked before use, nothing is unpickled, and no
path leaves the checkpoint's folder. No tensor byte is read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from penstock.errors import CheckpointError
from penstock.safetensors_header import (
    MAX_HEADER_NBYTES,
    PICKLE_REMEDY,
    Header,
    file_status,
    parse_json,
    read_header,
    read_small_file,
)

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
SINGLE_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file as it was when its header was read: enough to notice that it is another one now."""

    path: Path
    nbytes: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileIdentity:
        """The identity of the regular file at `path` (symlinks followed).

        Raises:
            CheckpointError: it is missing, unreadable, or not a regular file.
        """
        absolute = Path(os.path.abspath(path))
        status = file_status(absolute)
        return cls(absolute, status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)

    def check(self) -> None:
        """Check that the path still leads to the same file, unchanged.

        Raises:
            CheckpointError: the file was replaced, rewritten, truncated or removed.
        """
        now = FileIdentity.of(self.path)
        if now == self:
            return
        if (now.inode, now.device) != (self.inode, self.device):
            change = "replaced by another file"
        elif now.nbytes != self.nbytes:
            change = f"changed from {self.nbytes} to {now.nbytes} bytes"
        else:
            change = "written to"
        raise CheckpointError(f"{self.path}: {change} since the checkpoint was opened: restore it or open it again")


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one weight that lie together in one file.

    `file` indexes `Checkpoint.files`; `file_offset` counts from that file's start, `weight_offset` from the weight's.
    """

    file: int
    file_offset: int
    nbytes: int
    weight_offset: int


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where one weight's bytes are, in its contiguous layout.

    `dtype` is torch's name ("float32"). `pieces` cover the weight in order, without gap: one for an ordinary weight,
    several for one that is put together from several checkpoint tensors, none for a weight without elements.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """The weight's length in bytes."""
        return sum(piece.nbytes for piece in self.pieces)

    def after_files(self, count: int) -> WeightSource:
        """The same source in a checkpoint whose file list has `count` more files in front."""
        return replace(self, pieces=tuple(replace(piece, file=piece.file + count) for piece in self.pieces))


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint, and where each of its tensors lies in them.

    `fingerprint` is a sha256 (hex) over file names, sizes, modification times and headers.
    """

    files: tuple[FileIdentity, ...]
    tensors: Mapping[str, WeightSource]
    fingerprint: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """The checkpoint at `path`: a safetensors file, a shard index, or a folder that holds either (Hub layout).

        A folder is searched for `model.safetensors`, `diffusion_pytorch_model.safetensors`, a shard index
        `*.safetensors.index.json`, and at last a lone `*.safetensors` file, in this order.

        Raises:
            CheckpointError: nothing is there, it is a pickle, or any header or index is not sound.
        """
        found = find_weights(Path(os.path.abspath(path)))
        if found.name.endswith(INDEX_SUFFIX):
            weight_map = read_index(found)
            paths = [found.parent / shard for shard in sorted(set(weight_map.values()))]
        else:
            weight_map, paths = {}, [found]
        files, headers = [], []
        for shard in paths:
            identity = FileIdentity.of(shard)
            headers.append(read_header(shard))
            identity.check()
            files.append(identity)
        tensors = _tensors(files, headers, {key: found.parent / shard for key, shard in weight_map.items()}, found)
        return cls(tuple(files), MappingProxyType(tensors), _fingerprint(files, headers))

    def merged(self, other: Checkpoint) -> Checkpoint:
        """Both checkpoints as one: this one's files keep their indices, `other`'s tensors win where names meet."""
        moved = {name: source.after_files(len(self.files)) for name, source in other.tensors.items()}
        fingerprint = hashlib.sha256(f"{self.fingerprint}+{other.fingerprint}".encode()).hexdigest()
        return Checkpoint(self.files + other.files, MappingProxyType({**self.tensors, **moved}), fingerprint)

    def check(self) -> None:
        """Check that no file changed since it was opened.

        Raises:
            CheckpointError: one did.
        """
        for file in self.files:
            file.check()


def find_weights(path: Path) -> Path:
    """The safetensors file or shard index that `path`, a file or a folder, stands for.

    Raises:
        CheckpointError: there is none, or only pickles.
    """
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder: check the path")
    if not path.is_dir():
        if path.suffix in PICKLE_SUFFIXES or path.name.endswith(".bin.index.json"):
            raise CheckpointError(f"{path}: a pickle checkpoint is {PICKLE_REMEDY}")
        return path
    for name in SINGLE_NAMES:
        if (path / name).exists():
            return path / name
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be listed ({error.strerror}): check its permissions") from error
    preferred = [f"{name}.index.json" for name in SINGLE_NAMES if f"{name}.index.json" in names]
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    choices = preferred[:1] or indices or [name for name in names if name.endswith(".safetensors")]
    if len(choices) == 1:
        return path / choices[0]
    if choices:
        raise CheckpointError(f"{path}: holds several checkpoints ({', '.join(choices[:5])}): give one file's path")
    pickles = [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(f"{path}: holds only pickle weights ({pickles[0]}), {PICKLE_REMEDY}")
    raise CheckpointError(f"{path}: holds no *.safetensors file and no *{INDEX_SUFFIX}: give the model's own folder")


def read_index(path: Path) -> dict[str, str]:
    """The shard index at `path`: tensor name -> its shard's path, relative to the index's folder.

    Raises:
        CheckpointError: it is not such an index, or names a path outside its folder.
    """
    document = parse_json(path, read_small_file(path, MAX_HEADER_NBYTES), "text")
    weight_map: Any = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: key 'weight_map' is missing, empty or no map: download the index again")
    for key, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{path}: key {key!r} names {shard!r}, not a file: download the index again")
        parts = PurePosixPath(shard).parts
        if not parts or "\0" in shard or PurePosixPath(shard).is_absolute() or ".." in parts:
            raise CheckpointError(
                f"{path}: key {key!r} names {shard!r}, which is not a path inside the checkpoint's folder: "
                "do not use this checkpoint, or correct its index"
            )
        if PurePosixPath(shard).suffix in PICKLE_SUFFIXES:
            raise CheckpointError(f"{path}: key {key!r} names the pickle {shard!r}, {PICKLE_REMEDY}")
        if not os.path.exists(path.parent / shard):
            raise CheckpointError(f"{path}: key {key!r} names shard {shard!r}, which is missing: download it")
    return {key: str(PurePosixPath(shard)) for key, shard in weight_map.items()}


def _tensors(
    files: list[FileIdentity], headers: list[Header], index: Mapping[str, Path], index_path: Path
) -> dict[str, WeightSource]:
    """Every tensor of every file; where two shards hold a name, the index decides."""
    tensors: dict[str, WeightSource] = {}
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        for name, entry in header.entries.items():
            owner = index.get(name, file.path)
            if Path(os.path.abspath(owner)) != file.path:
                continue
            if name in tensors:
                raise CheckpointError(
                    f"{file.path}: key {name!r} is also in another shard, and {index_path} names neither: "
                    "correct the index"
                )
            pieces = (Piece(number, entry.file_offset, entry.nbytes, 0),) if entry.nbytes else ()
            tensors[name] = WeightSource(entry.dtype, entry.shape, pieces)
    for name, owner in index.items():
        if name not in tensors:
            raise CheckpointError(
                f"{index_path}: key {name!r} is not in shard {owner.name!r}: download shard and index again"
            )
    return tensors


def _fingerprint(files: list[FileIdentity], headers: list[Header]) -> str:
    digest = hashlib.sha256()
    for file, header in zip(files, headers, strict=True):
        digest.update(os.fsencode(file.path.name))
        digest.update(f"\0{file.nbytes}\0{file.mtime_ns}\0{header.sha256}\n".encode())
    return digest.hexdigest()
