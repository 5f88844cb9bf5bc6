"""Transformers and diffusers models without their weights, and where each weight's bytes are.

The library's own `from_pretrained` does all the work: configuration, renames, prefixes, ties, conversions,
initialisation of what the checkpoint lacks. Only its file opener is replaced, by one that hands out tensors which
carry their provenance instead of bytes (`provenance.py`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from penstock.budget import format_size
from penstock.checkpoint import Checkpoint, WeightSource
from penstock.errors import CheckpointError, CheckpointMismatchError, PenstockError, UnsupportedModelError
from penstock.matching import is_of, listed, match
from penstock.provenance import Ledger, ProvenanceTensor, provenance_tensor, source_of
from penstock.safetensors_header import TORCH_DTYPES
from penstock.substitution import Substitute, substituted

__all__ = ["Skeleton", "load_skeleton", "match"]

MAX_SMALL_PIECES = 64
SMALL_PIECE_NBYTES = 16384
_FORMAT_DTYPES = {torch_name: name for name, (torch_name, _) in TORCH_DTYPES.items()}
_PLACEMENT = ("device_map", "max_memory", "offload_folder", "tp_plan", "tp_size", "device_mesh", "distributed_config")
_OTHER_WEIGHTS = ("state_dict", "gguf_file", "from_tf", "from_flax")


@dataclass(frozen=True)
class Skeleton:
    """A model whose checkpoint weights are on the meta device.

    `sources` says, by a tensor's first name in the state dict, which bytes of `checkpoint` it is made of. What the
    checkpoint does not hold (parameters that the library initialised, buffers that are not saved) is real.
    """

    module: torch.nn.Module
    checkpoint: Checkpoint
    sources: dict[str, WeightSource]


def load_skeleton(
    cls: type, path: str | os.PathLike[str], *, max_initialized_nbytes: int | None = None, **kwargs: Any
) -> Skeleton:
    """The model that `cls.from_pretrained(path, **kwargs)` would load, without its weights' bytes.

    `cls` is a transformers or diffusers model class, an Auto class too; `path` a local folder. Weights that the
    checkpoint lacks are initialised by the library, up to `max_initialized_nbytes`.

    Raises:
        CheckpointError: the folder is missing, damaged, holds pickles, or is no model folder.
        CheckpointMismatchError: shapes differ from the configuration's, or too much is missing.
        UnsupportedModelError: another kind of class, or a weight that needs a conversion (names `penstock pack`).
    """
    folder = Path(os.path.abspath(path))
    transformers = is_of(cls, "transformers")
    if not hasattr(cls, "from_pretrained") or not (transformers or is_of(cls, "diffusers")):
        raise UnsupportedModelError(
            f"{cls.__name__} is not a transformers or diffusers model class: build the module yourself and call "
            "penstock.stream(module, checkpoint, budget=...)"
        )
    _check_arguments(kwargs)
    opener = _Opener(folder, _validated(folder, kwargs), max_initialized_nbytes)
    kwargs = {**kwargs, "use_safetensors": True, "disable_mmap": False}
    substitutes = opener.for_transformers(kwargs) if transformers else opener.for_diffusers(kwargs)
    with substituted(substitutes):
        try:
            module = cls.from_pretrained(str(folder), **kwargs)
        except PenstockError:
            raise
        except Exception as error:
            if opener.ledger.failures:
                raise _not_in_place(folder, opener.ledger.failures) from error
            if isinstance(error, OSError):
                raise CheckpointError(f"{folder}: {_first_line(error)}: check the model's folder") from error
            raise
    sources = _settle(folder, module)
    return Skeleton(module, opener.checkpoint(), sources)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _check_arguments(kwargs: Mapping[str, Any]) -> None:
    for name in _PLACEMENT:
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(f"{name}={kwargs[name]!r}: Penstock places the weights: leave {name} out")
    for name in _OTHER_WEIGHTS:
        if kwargs.get(name):
            raise UnsupportedModelError(f"{name}: only a folder's safetensors weights are streamed: leave {name} out")
    if kwargs.get("output_loading_info"):
        raise UnsupportedModelError("output_loading_info=True returns a pair, not a module: leave it out")
    if kwargs.get("use_safetensors") is False:
        raise UnsupportedModelError("use_safetensors=False asks for pickles: leave it out")


def _validated(folder: Path, kwargs: Mapping[str, Any]) -> Checkpoint | None:
    """The folder's checkpoint, checked before any library code reads it; None for a variant, checked file by file."""
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder: give a local model folder (huggingface_hub.snapshot_download gets one)"
        )
    if (folder / "adapter_config.json").exists():
        raise UnsupportedModelError(
            f"{folder}: an adapter, whose weights are added to a base model's: merge it (merge_and_unload), save that"
        )
    if kwargs.get("variant"):
        return None
    return Checkpoint.open(folder / (kwargs.get("subfolder") or ""))


def _not_in_place(folder: Path, problems: list[str]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{folder}: {listed(problems)}: not readable in place. `penstock pack {folder} OUT` writes a folder that is "
        "(with --dtype where the dtype differs; or ask for the checkpoint's own dtype)"
    )


class _Opener:
    """Opens checkpoint files as `safetensors` does, and hands out tensors that only know where their bytes are."""

    def __init__(self, folder: Path, checkpoint: Checkpoint | None, max_initialized_nbytes: int | None) -> None:
        self.ledger = Ledger()
        self._folder = folder
        self._checkpoint = checkpoint
        self._max_initialized_nbytes = max_initialized_nbytes
        self.ledger.files.extend(checkpoint.files if checkpoint else ())

    def checkpoint(self) -> Checkpoint:
        """Everything that was opened, as one checkpoint."""
        if self._checkpoint is None:
            raise CheckpointError(f"{self._folder}: no weights were read: check that it is the model's own folder")
        return self._checkpoint

    def for_transformers(self, kwargs: dict[str, Any]) -> list[Substitute]:
        """What is replaced inside transformers while it loads."""
        modeling = importlib.import_module("transformers.modeling_utils")
        ignore_mismatched = bool(kwargs.get("ignore_mismatched_sizes"))

        def convert(original: Any, *, model: torch.nn.Module, **rest: Any) -> Any:
            info, index = original(model=model, **rest)
            if not info.conversion_errors and not info.error_msgs:
                self._check_loaded(model, info, ignore_mismatched)
            return info, index

        return [
            (modeling, "safe_open", lambda original, file, *args, **rest: _File(self.tensors(file))),
            (modeling, "_is_on_hf_mount", lambda original, file: False),
            (modeling, "convert_and_load_state_dict_in_model", convert),
        ]

    def for_diffusers(self, kwargs: dict[str, Any]) -> list[Substitute]:
        """What is replaced inside diffusers while it loads."""
        kwargs["low_cpu_mem_usage"] = True
        modules = [
            importlib.import_module(f"diffusers.models.{name}") for name in ("modeling_utils", "model_loading_utils")
        ]

        def load(original: Any, file: Any, *args: Any, **rest: Any) -> Any:
            return file if isinstance(file, dict) else self.tensors(file)

        return [(module, "load_state_dict", load) for module in modules]

    def tensors(self, file: str | os.PathLike[str]) -> dict[str, ProvenanceTensor]:
        """The tensors of one file, by checkpoint key."""
        path = Path(os.path.abspath(file))
        if self._folder not in path.parents:
            raise CheckpointError(f"{path}: outside the model's folder {self._folder}: correct the checkpoint's index")
        if path not in [known.path for known in self.ledger.files]:
            opened = Checkpoint.open(path)
            self._checkpoint = self._checkpoint.merged(opened) if self._checkpoint else opened
            self.ledger.files.extend(opened.files)
        number = [known.path for known in self.ledger.files].index(path)
        return {
            key: provenance_tensor(self.ledger, key, source)
            for key, source in self.checkpoint().tensors.items()
            if all(piece.file == number for piece in source.pieces)
        }

    def _check_loaded(self, model: torch.nn.Module, info: Any, ignore_mismatched: bool) -> None:
        """Refuse before the library allocates what the checkpoint does not hold."""
        if info.mismatched_keys and not ignore_mismatched:
            wrong = [f"{name} has shape {list(saved)}, not {list(own)}" for name, saved, own in info.mismatched_keys]
            raise CheckpointMismatchError(
                f"{self._folder}: {listed(sorted(wrong))}: correct config.json, or pass ignore_mismatched_sizes=True"
            )
        if self._max_initialized_nbytes is None:
            return
        absent = info.missing_and_mismatched() - set(getattr(model, "all_tied_weights_keys", {}))
        state = model.state_dict()
        nbytes = sum(state[name].nbytes for name in absent if name in state)
        if nbytes > self._max_initialized_nbytes:
            raise CheckpointMismatchError(
                f"{self._folder}: {format_size(nbytes)} of weights are missing ({listed(sorted(absent))}), more than "
                f"{format_size(self._max_initialized_nbytes)} to initialise: give this class's own checkpoint"
            )


class _File:
    """Stands for a `safetensors.safe_open` of the framework "pt"."""

    def __init__(self, tensors: dict[str, ProvenanceTensor]) -> None:
        self._tensors = tensors

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def keys(self) -> list[str]:
        return list(self._tensors)

    def metadata(self) -> dict[str, str]:
        return {"format": "pt"}

    def get_tensor(self, key: str) -> ProvenanceTensor:
        return self._tensors[key]

    def get_slice(self, key: str) -> _Slice:
        return _Slice(self._tensors[key])


class _Slice:
    """Stands for what `safe_open(...).get_slice` returns."""

    def __init__(self, tensor: ProvenanceTensor) -> None:
        self._tensor = tensor

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._tensor if index is Ellipsis else self._tensor[index]

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return _FORMAT_DTYPES[str(self._tensor.dtype).removeprefix("torch.")]


def _settle(folder: Path, module: torch.nn.Module) -> dict[str, WeightSource]:
    """Put plain meta tensors in the place of provenance tensors, the same one wherever one was; their sources."""
    plain: dict[int, torch.Tensor] = {}
    kept: list[torch.Tensor] = []  # alive until the end, so that no id is used twice
    sources: dict[str, WeightSource] = {}
    problems = []
    for name, table, key in _slots(module):
        tensor = table[key]
        if not isinstance(tensor, ProvenanceTensor):
            if tensor is not None and tensor.is_meta and id(tensor) not in plain:
                raise CheckpointMismatchError(f"{folder}: {name} is missing: give this class's own checkpoint")
            continue
        if id(tensor) not in plain:
            problem = _problem(tensor)
            if problem:
                problems.append(f"{name} {problem}")
            plain[id(tensor)] = _plain(tensor)
            kept += [tensor, plain[id(tensor)]]
            plain[id(plain[id(tensor)])] = plain[id(tensor)]
            sources[name] = source_of(tensor)
        table[key] = plain[id(tensor)]
    if problems:
        raise _not_in_place(folder, problems)
    return sources


def _slots(module: torch.nn.Module) -> Iterator[tuple[str, dict[str, torch.Tensor | None], str]]:
    """Each place that holds a parameter or buffer, in state-dict order: its name, its table and its key there."""
    for prefix, part in module.named_modules():
        for table in (part._parameters, part._buffers):
            for key in list(table):
                yield f"{prefix}.{key}" if prefix else key, table, key


def _problem(tensor: ProvenanceTensor) -> str | None:
    origin = tensor.provenance
    if origin.lost:
        return f"needs {origin.lost} of checkpoint key {origin.key!r}"
    nbytes = sum(piece.nbytes for piece in origin.pieces)
    if nbytes != tensor.numel() * tensor.element_size():
        return f"was resized from checkpoint key {origin.key!r}"
    if len(origin.pieces) > MAX_SMALL_PIECES and nbytes // len(origin.pieces) < SMALL_PIECE_NBYTES:
        return f"lies in {len(origin.pieces)} pieces of {nbytes // len(origin.pieces)} bytes"
    return None


def _plain(tensor: ProvenanceTensor) -> torch.Tensor:
    """The meta tensor or parameter that stands for `tensor`, with what the library noted on it."""
    plain = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, torch.nn.Parameter):
        plain = torch.nn.Parameter(plain, requires_grad=tensor.requires_grad)
    plain.__dict__.update(
        {name: value for name, value in vars(tensor).items() if name not in ("provenance", "_is_param")}
    )
    return plain
