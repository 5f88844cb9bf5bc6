"""A model folder in the Hub's layout: which class of transformers or diffusers its `config.json` names.

The folder is untrusted: a class is taken only if the installed library has it and it is a model; code that the folder
brings along is never run.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import CheckpointError, UnsupportedModelError

_MAX_CONFIG_NBYTES = 16 * 2**20
_REMEDY = "name a local folder with config.json and safetensors weights, as the Hub lays them out"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder and what its `config.json` says.

    Attributes:
        path: the folder.
        library: `"transformers"` or `"diffusers"`.
        class_name: the model's class there.
        config: the contents of `config.json`, unchecked beyond being an object.
    """

    path: Path
    library: str
    class_name: str
    config: dict[str, Any]

    def load_class(self) -> Any:
        """The class, never an Auto class; imports its library.

        Raises:
            CheckpointError: the configuration is not the library's.
            UnsupportedModelError: the library is not installed, or has no such model class.
        """
        found = load_class(self.library, self.class_name)
        if self.class_name != "AutoModel":
            if not hasattr(found, "forward"):
                raise UnsupportedModelError(f"{self.path}: {self.library}.{self.class_name} is no model class")
            return found
        config = self.load_config()
        try:
            concrete = found._model_mapping[type(config)]  # one class, or several of which the first is the usual one
        except KeyError as error:
            raise UnsupportedModelError(
                f"{self.path}: transformers knows no model for model_type {self.config.get('model_type')!r}"
            ) from error
        return concrete[0] if isinstance(concrete, tuple) else concrete

    def load_config(self) -> Any:
        """The transformers configuration object.

        Raises:
            CheckpointError: `config.json` is not one.
            UnsupportedModelError: transformers is not installed, or the folder is a diffusers model's.
        """
        if self.library != "transformers":
            raise UnsupportedModelError(f"{self.path}: {self.class_name} is no transformers model")
        auto = load_class("transformers", "AutoConfig")
        try:
            return auto.from_pretrained(str(self.path))
        except Exception as error:  # configuration classes validate as they like
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{self.path / 'config.json'}: not a configuration of transformers ({first_line})"
            ) from error


def open_folder(path: str | os.PathLike[str]) -> ModelFolder:
    """The model folder at `path`; imports nothing.

    Raises:
        CheckpointError: it is missing, not a folder, or its `config.json` is missing or damaged.
        UnsupportedModelError: it is a pipeline, or needs code of its own.
    """
    folder = Path(path)
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder; {_REMEDY}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder; {_REMEDY}")
    if (folder / "model_index.json").exists():
        raise UnsupportedModelError(
            f"{folder}: a diffusers pipeline; name one of its models, such as {folder / 'unet'}"
        )
    config = _read_config(folder / "config.json")
    diffusers_name = config.get("_class_name")
    if diffusers_name is not None:
        return ModelFolder(folder, "diffusers", _identifier(folder, "_class_name", diffusers_name), config)
    architectures = config.get("architectures")
    if not architectures:
        return ModelFolder(folder, "transformers", "AutoModel", config)
    if not isinstance(architectures, list):
        raise CheckpointError(f"{folder / 'config.json'}: architectures is {architectures!r}, not a list of names")
    return ModelFolder(folder, "transformers", _identifier(folder, "architectures", architectures[0]), config)


def load_class(library: str, class_name: str) -> Any:
    """The model class `class_name` of `library`, which is kept from the network and from talking.

    Raises:
        UnsupportedModelError: the library is not installed, or has no such model class.
    """
    quieten()
    try:
        module = importlib.import_module(library)
        if library == "transformers":
            module.utils.logging.disable_progress_bar()
        found = getattr(module, class_name)  # both import lazily, so this may fail in any way an import can
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{class_name}: the installed {library} has no such model (code from model folders is not run)"
        ) from error
    except ImportError as error:
        extra = "hub" if library == "transformers" else "diffusers"
        raise UnsupportedModelError(
            f"{library} cannot be imported ({error}): pip install 'penstock[{extra}]'"
        ) from error
    if not hasattr(found, "from_pretrained") or not isinstance(found, type):
        raise UnsupportedModelError(f"{library}.{class_name} is no model class")
    return found


def quieten() -> None:
    """Keeps transformers and diffusers from the network and from talking; call it before they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _read_config(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_CONFIG_NBYTES:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes are too many for a configuration")
        config = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing; {_REMEDY}") from error
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: holds a {type(config).__name__}, not an object")
    return config


def _identifier(folder: Path, key: str, value: object) -> str:
    if not isinstance(value, str) or not value.isidentifier() or value.startswith("_"):
        raise CheckpointError(f"{folder / 'config.json'}: {key} is {value!r}, not the name of a class")
    return value
