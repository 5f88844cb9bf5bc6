"""One model of the benchmark: its class and shape, its files in the cache folder, and what it is called with."""

from __future__ import annotations

import copy
import importlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.cache import cache_dir
from penstock.checkpoint import Checkpoint

SEED = 0
OWN = "benchmarks."
Inputs = Callable[[Mapping[str, Any], int, torch.Generator], dict[str, Any]]
"""The arguments of a call: given the configuration, the batch and a source of random numbers."""


@dataclass(frozen=True)
class Model:
    """One model of the benchmark.

    Attributes:
        name: as on the command line.
        title: as in tables.
        library: where its class is imported from: transformers, diffusers, or a module of this package.
        class_name: its class there.
        config_name: its configuration class there; None if the class takes the configuration as arguments.
        config: arguments of that class.
        tiny: arguments that differ in its tiny twin.
        inputs_of: makes the input of a call.
        extra: arguments of each call besides the input.
        block_modules: what diffusers' block-level offloading has to look into to find the model's blocks.
        batch: how many inputs a call has.
    """

    name: str
    title: str
    library: str
    class_name: str
    config_name: str | None
    config: Mapping[str, Any]
    tiny: Mapping[str, Any]
    inputs_of: Inputs
    extra: Mapping[str, Any] = field(default_factory=dict)
    block_modules: tuple[str, ...] = ()
    batch: int = 1
    is_tiny: bool = False

    @property
    def is_own(self) -> bool:
        """Whether it is of this package, so that no library loads it."""
        return self.library.startswith(OWN)

    @property
    def folder(self) -> Path:
        """Where its checkpoint and what rivals make of it lie."""
        return root() / (f"{self.name}-tiny" if self.is_tiny else self.name)

    @property
    def checkpoint(self) -> Path:
        """A folder in the Hub's layout, with one safetensors file."""
        return self.folder / "checkpoint"

    @property
    def weights_file(self) -> Path:
        """The safetensors file, under the name that the library gives it."""
        is_diffusers = self.library == "diffusers"
        return self.checkpoint / f"{'diffusion_pytorch_model' if is_diffusers else 'model'}.safetensors"

    def weights_nbytes(self) -> int:
        """Bytes of all its weights, as in the checkpoint."""
        return sum(source.nbytes for source in Checkpoint.open(self.weights_file).tensors.values())

    def small(self) -> Model:
        """The tiny twin."""
        return replace(self, config={**self.config, **self.tiny}, is_tiny=True)

    def with_batch(self, batch: int) -> Model:
        """The same model, called with so many inputs at a time."""
        return replace(self, batch=batch)

    def load_class(self) -> Any:
        """The model's class."""
        return getattr(importlib.import_module(self.library), self.class_name)

    def build(self) -> nn.Module:
        """A new module with weights as its class makes them, in evaluation mode."""
        cls, arguments = self.load_class(), copy.deepcopy(dict(self.config))  # a configuration may take them apart
        if self.config_name is None:
            module: nn.Module = cls(**arguments)
        else:
            config = getattr(importlib.import_module(self.library), self.config_name)(**arguments)
            module = cls(config) if self.is_own else cls._from_config(config)
        return module.eval()

    def inputs(self) -> dict[str, Any]:
        """The arguments of every call: the same random ones each time."""
        generator = torch.Generator().manual_seed(SEED)
        return {**self.inputs_of(self.config, self.batch, generator), **self.extra}


def root() -> Path:
    """The benchmark's part of the cache folder."""
    named = os.environ.get("PENSTOCK_BENCHMARKS")
    return Path(named) if named else cache_dir() / "benchmarks"


def write_checkpoint(model: Model) -> None:
    """Writes the checkpoint unless it is there: whole or not at all, on the disk, and not in the page cache."""
    if model.checkpoint.is_dir():
        return
    partial = model.folder / "checkpoint.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.manual_seed(SEED)
    module: Any = model.build()
    if model.is_own:
        from safetensors.torch import save_file

        save_file(module.state_dict(), partial / model.weights_file.name)
    elif model.library == "diffusers":
        module.save_pretrained(partial, max_shard_size="100GB")
    else:
        # Names as in the module, so that arms which know of no renaming read the same file.
        module.save_pretrained(partial, max_shard_size="100GB", save_original_format=False)
    flush(partial)
    partial.rename(model.checkpoint)


def flush(folder: Path) -> None:
    """Brings every file below `folder` to the disk and out of the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
