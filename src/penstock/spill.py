"""A module's present weights written to a file, so that they can be streamed from it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from penstock.cache import atomic_write
from penstock.checkpoint import Checkpoint
from penstock.errors import StorageError, UnsupportedModelError
from penstock.runtime.collecting import dense_stride
from penstock.safetensors_header import TORCH_DTYPES

_ALIGNMENT_NBYTES = 4096
_WRITE_NBYTES = 8 << 20
_FORMAT_NAMES = {torch_name: name for name, (torch_name, _) in TORCH_DTYPES.items()}


def spill(module: nn.Module, folder: str | os.PathLike[str] | None) -> tuple[Checkpoint, Path]:
    """Write the parameters of `module`, each once, to a new folder below `folder` (default: the system's).

    Returns the checkpoint and the folder, which the caller removes when it is no longer read.

    Raises:
        UnsupportedModelError: a parameter has no memory (meta device) or is not an ordinary dense tensor.
        StorageError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    tensors = {name: _writable(name, parameter) for name, parameter in module.named_parameters()}
    home: Path | None = None
    try:
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix="penstock-", dir=folder))
        _write(home / "model.safetensors", tensors)
        return Checkpoint.open(home), home
    except OSError as error:
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)
        where = folder if folder is not None else tempfile.gettempdir()
        raise StorageError(
            f"writing the module's weights to {where} failed ({error.strerror or error}): free space there, "
            "or give another `offload_folder`"
        ) from error


def _writable(name: str, parameter: nn.Parameter) -> torch.Tensor:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise UnsupportedModelError(
            f"parameter {name!r} of a lazy module has no shape yet: call the module once before it is streamed"
        )
    if parameter.is_meta or parameter.layout != torch.strided or parameter.device.type != "cpu":
        raise UnsupportedModelError(
            f"parameter {name!r} is a {parameter.layout} tensor on {parameter.device}, so it has no bytes to write: "
            "give the `checkpoint` that holds it"
        )
    if str(parameter.dtype).removeprefix("torch.") not in _FORMAT_NAMES:
        raise UnsupportedModelError(
            f"parameter {name!r} is of {parameter.dtype}, which safetensors files cannot hold: cast it first"
        )
    return parameter.detach()


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file whose data begins on an aligned byte, large weights first so that they stay aligned."""
    names = sorted(tensors, key=lambda n: (_nbytes(tensors[n]) % _ALIGNMENT_NBYTES != 0, -_nbytes(tensors[n])))
    header, offset = {}, 0
    for name in names:
        end = offset + _nbytes(tensors[name])
        header[name] = {
            "dtype": _FORMAT_NAMES[str(tensors[name].dtype).removeprefix("torch.")],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT_NBYTES)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = _in_order_of_memory(tensors[name])
            if flat.numel():
                data = memoryview(flat.view(torch.uint8).numpy().data)
                for at in range(0, len(data), _WRITE_NBYTES):
                    file.write(data[at : at + _WRITE_NBYTES])
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _in_order_of_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements, flat; one that is channels last or transposed is not put into another order."""
    if dense_stride(tensor) is not None:
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.contiguous().view(-1)


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
