"""A library's own `from_pretrained`, fed with tensors that only know where their bytes are."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import penstock.provenance_ops  # noqa: F401 - teaches provenance tensors their operators
from penstock.budget import format_size
from penstock.checkpoint import Checkpoint, Piece, WeightSource
from penstock.errors import CheckpointError, CheckpointMismatchError, PenstockError, UnsupportedModelError
from penstock.matching import is_of, listed
from penstock.provenance import Ledger, ProvenanceTensor, provenance_tensor
from penstock.safetensors_header import TORCH_DTYPES
from penstock.substitution import Substitute, substituted

_FORMAT_DTYPES = {torch_name: name for name, (torch_name, _) in TORCH_DTYPES.items()}
_PLACEMENT = ("device_map", "max_memory", "offload_folder", "tp_plan", "tp_size", "device_mesh", "distributed_config")
_OTHER_WEIGHTS = ("state_dict", "gguf_file", "from_tf", "from_flax")


class Opener:
    """Opens checkpoint files as `safetensors` does, and hands out tensors that only know where their bytes are."""

    def __init__(
        self,
        cls: type,
        path: str | os.PathLike[str],
        *,
        ledger: Ledger | None = None,
        max_initialized_nbytes: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.folder = Path(os.path.abspath(path))
        self._cls = cls
        self._library = _library(cls)
        _check_arguments(kwargs)
        self._checkpoint = _validated(self.folder, kwargs)
        self._kwargs = {**kwargs, "use_safetensors": True, "disable_mmap": False}
        self._max_initialized_nbytes = max_initialized_nbytes
        self.ledger = Ledger() if ledger is None else ledger
        if ledger is None and self._checkpoint is not None:
            self.ledger.files.extend(self._checkpoint.files)

    def load(self) -> torch.nn.Module:
        """What the class's `from_pretrained` returns, with provenance tensors in the place of weights.

        Raises:
            CheckpointError: the library cannot read the folder.
            UnsupportedModelError: it asks for the bytes of weights.
        """
        substitutes = self._for_transformers() if self._library == "transformers" else self._for_diffusers()
        with substituted(substitutes):
            try:
                module: torch.nn.Module = self._cls.from_pretrained(str(self.folder), **self._kwargs)  # type: ignore[attr-defined]
            except PenstockError:
                raise
            except Exception as error:
                if self.ledger.failures:
                    raise not_in_place(self.folder, self.ledger.failures) from error
                if isinstance(error, OSError):
                    message = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
                    raise CheckpointError(f"{self.folder}: {message}: check the model's folder") from error
                raise
        return module

    def checkpoint(self) -> Checkpoint:
        """Everything that was opened, as one checkpoint."""
        if self._checkpoint is None:
            raise CheckpointError(f"{self.folder}: no weights were read: check that it is the model's own folder")
        return self._checkpoint

    def _for_transformers(self) -> list[Substitute]:
        modeling = importlib.import_module("transformers.modeling_utils")
        ignore_mismatched = bool(self._kwargs.get("ignore_mismatched_sizes"))

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

    def _for_diffusers(self) -> list[Substitute]:
        self._kwargs["low_cpu_mem_usage"] = True
        modules = [
            importlib.import_module(f"diffusers.models.{name}") for name in ("modeling_utils", "model_loading_utils")
        ]

        def load(original: Any, file: Any, *args: Any, **rest: Any) -> Any:
            return file if isinstance(file, dict) else self.tensors(file)

        return [(module, "load_state_dict", load) for module in modules]

    def tensors(self, file: str | os.PathLike[str]) -> dict[str, ProvenanceTensor]:
        """The tensors of one file, by checkpoint key.

        Where the ledger notes casts, a piece's file is the tensor's place in `checkpoint().tensors`.
        """
        path = Path(os.path.abspath(file))
        if self.folder not in path.parents:
            raise CheckpointError(f"{path}: outside the model's folder {self.folder}: correct the checkpoint's index")
        if path not in [known.path for known in self.ledger.files]:
            opened = Checkpoint.open(path)
            self._checkpoint = self._checkpoint.merged(opened) if self._checkpoint else opened
            self.ledger.files.extend(opened.files)
        number = [known.path for known in self.ledger.files].index(path)
        return {
            key: provenance_tensor(self.ledger, key, source if self.ledger.casts is None else by_key(place, source))
            for place, (key, source) in enumerate(self.checkpoint().tensors.items())
            if all(piece.file == number for piece in source.pieces)
        }

    def _check_loaded(self, model: torch.nn.Module, info: Any, ignore_mismatched: bool) -> None:
        """Refuse before the library allocates what the checkpoint does not hold."""
        if info.mismatched_keys and not ignore_mismatched:
            wrong = [f"{name} has shape {list(saved)}, not {list(own)}" for name, saved, own in info.mismatched_keys]
            raise CheckpointMismatchError(
                f"{self.folder}: {listed(sorted(wrong))}: correct config.json, or pass ignore_mismatched_sizes=True"
            )
        if self._max_initialized_nbytes is None:
            return
        absent = info.missing_and_mismatched() - set(getattr(model, "all_tied_weights_keys", {}))
        state = model.state_dict()
        nbytes = sum(state[name].nbytes for name in absent if name in state)
        if nbytes > self._max_initialized_nbytes:
            raise CheckpointMismatchError(
                f"{self.folder}: {format_size(nbytes)} of weights are missing ({listed(sorted(absent))}), more than "
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


def by_key(place: int, source: WeightSource) -> WeightSource:
    """`source` as a tensor of its own: its place among the checkpoint's tensors instead of a file."""
    pieces = (Piece(place, 0, source.nbytes, 0),) if source.nbytes else ()
    return WeightSource(source.dtype, source.shape, pieces)


def _library(cls: type) -> str:
    """The library that `cls`, a model class or an Auto class, is of."""
    for library in ("transformers", "diffusers"):
        auto = any(base.__name__ == "_BaseAutoModelClass" for base in cls.__mro__)
        if is_of(cls, library) and hasattr(cls, "from_pretrained") and (auto or issubclass(cls, torch.nn.Module)):
            return library
    raise UnsupportedModelError(
        f"{cls.__name__} is not a transformers or diffusers model class: build the module yourself and call "
        "penstock.stream(module, checkpoint, budget=...)"
    )


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
    inner = folder / (kwargs.get("subfolder") or "")
    if kwargs.get("config") is None and not (inner / "config.json").is_file():
        raise CheckpointError(f"{inner}: holds no config.json: give the model's own folder, or pass config=")
    return None if kwargs.get("variant") else Checkpoint.open(inner)


def not_in_place(folder: Path, problems: list[str]) -> UnsupportedModelError:
    """The error for weights that are not in the checkpoint as the model has them."""
    return UnsupportedModelError(
        f"{folder}: {listed(problems)}: not readable in place. `penstock pack {folder} OUT` writes a folder that is "
        "(with --dtype where the dtype differs; or ask for the checkpoint's own dtype)"
    )
