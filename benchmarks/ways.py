"""The arms: ways to run one model, each as a user of that library would do it.

A rival's offload folder is written beforehand (`prepare`), so that no arm is charged for it.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import penstock
from benchmarks.model import Model, flush, write_checkpoint
from penstock.planning.strategies.registry import names

_CACHE_LINE_NBYTES = 64


@dataclass(frozen=True, slots=True)
class Way:
    """One arm.

    Attributes:
        title: as in tables.
        load: the module, ready to be called; given the model and the budget in bytes (0: none).
        folder: where the files that it reads lie: what has to leave the page cache before a pass.
        is_capped: whether its memory is limited to the budget.
        uses_page_cache: whether what it reads is dropped from the page cache before each pass.
        prepare: writes that folder, if it is not the checkpoint.
        strategy: how Penstock plans; None if it is another's way.
    """

    title: str
    load: Callable[[Model, int], nn.Module]
    folder: Callable[[Model], Path]
    is_capped: bool = True
    uses_page_cache: bool = True
    prepare: Callable[[Model], None] = write_checkpoint
    strategy: str | None = None

    @property
    def streams(self) -> bool:
        """Whether it is Penstock's."""
        return self.strategy is not None


def _checkpoint(model: Model) -> Path:
    return model.checkpoint


def load_resident(model: Model, _budget_nbytes: int) -> nn.Module:
    """As the library loads it, in memory of its own.

    Weights may be left on the mapped file; in the page cache other arms would find them. Each copy's address is
    congruent to the original's, because that can decide the last bit of a product.
    """
    module = load_plainly(model, 0)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = _congruent_copy(tensor.data)
    return module


def _congruent_copy(tensor: torch.Tensor) -> torch.Tensor:
    nbytes = tensor.numel() * tensor.element_size()
    memory = torch.empty(nbytes + _CACHE_LINE_NBYTES, dtype=torch.uint8)
    begin = (tensor.data_ptr() - memory.data_ptr()) % _CACHE_LINE_NBYTES
    return memory[begin : begin + nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def load_plainly(model: Model, _budget_nbytes: int) -> nn.Module:
    """As the library loads it."""
    if not model.is_own:
        module: nn.Module = model.load_class().from_pretrained(model.checkpoint, use_safetensors=True)
        return module.eval()
    return load_paging(model, 0)


def load_penstock(model: Model, budget_nbytes: int, *, strategy: str) -> nn.Module:
    """Streamed. Plans at the first call, as a call without `example` does."""
    terms: dict[str, Any] = {"budget": budget_nbytes, "strategy": strategy}
    if not model.is_own:
        module: nn.Module = penstock.from_pretrained(model.load_class(), model.checkpoint, **terms)
        return module.eval()
    with torch.device("meta"):
        skeleton = model.build()
    return penstock.stream(skeleton, model.weights_file, **terms)


def skeleton(model: Model) -> nn.Module:
    """The model with its parameters on the meta device and its buffers made."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = model.build()
    _tie(module)
    return module


def load_paging(model: Model, _budget_nbytes: int) -> nn.Module:
    """The parameters are views of the mapped file: the kernel pages them in and out."""
    from safetensors.torch import load_file

    module = skeleton(model)
    missing, unexpected = module.load_state_dict(load_file(model.weights_file), strict=False, assign=True)
    _tie(module)
    if unexpected or any(parameter.is_meta for parameter in module.parameters()):
        raise RuntimeError(f"{model.name}: missing {missing}, unexpected {unexpected}")
    return module


def load_accelerate(model: Model, _budget_nbytes: int) -> nn.Module:
    """`accelerate.disk_offload`."""
    from accelerate import disk_offload

    module: nn.Module = disk_offload(skeleton(model), _accelerate_folder(model), execution_device=torch.device("cpu"))
    return module


def prepare_accelerate(model: Model) -> None:
    """Writes the offload folder, by the library's own hand."""
    from accelerate.utils import offload_state_dict

    folder = _accelerate_folder(model)
    if (folder / "index.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    offload_state_dict(folder, load_paging(model, 0).state_dict())
    flush(folder)


def _accelerate_folder(model: Model) -> Path:
    return model.folder / "accelerate"


def load_diffusers(model: Model, _budget_nbytes: int) -> nn.Module:
    """Group offloading to disk, by diffusers; its files exist, so the skeleton's empty memory is never looked at."""
    module = skeleton(model)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:  # empty memory costs nothing until it is written to
                part._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=False)
    return _group_offload(module, model)


def _group_offload(module: nn.Module, model: Model) -> nn.Module:
    """By block. Its weights must not be shared: a group that ends drops the weight that another still needs."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        module,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=False,
        offload_to_disk_path=str(_diffusers_folder(model)),
        block_modules=list(model.block_modules),
    )
    return module


def prepare_diffusers(model: Model) -> None:
    """Writes the offload folder, by the library's own hand."""
    folder = _diffusers_folder(model)
    finished = folder / "complete"
    if finished.is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _group_offload(_untied(load_paging(model, 0)), model)
    flush(folder)
    finished.touch()


def _diffusers_folder(model: Model) -> Path:
    return model.folder / "diffusers"


def _untied(module: nn.Module) -> nn.Module:
    """Every place with a parameter of its own."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)
    return module


def _tie(module: nn.Module) -> None:
    tie = getattr(module, "tie_weights", None)
    if tie is not None:
        tie()


def _streamed(title: str, strategy: str) -> Way:
    load = functools.partial(load_penstock, strategy=strategy)
    return Way(title, load, _checkpoint, uses_page_cache=False, strategy=strategy)


WAYS = {
    "resident": Way("resident", load_resident, _checkpoint, is_capped=False, uses_page_cache=False),
    "penstock": _streamed("Penstock", "auto"),
    **{name: _streamed(f"Penstock, {name}", name) for name in names()},
    "accelerate": Way("accelerate disk_offload", load_accelerate, _accelerate_folder, prepare=prepare_accelerate),
    "paging": Way("OS paging", load_paging, _checkpoint),
    "diffusers": Way("diffusers group offloading", load_diffusers, _diffusers_folder, prepare=prepare_diffusers),
    "plain": Way("from_pretrained", load_plainly, _checkpoint, is_capped=False),
}
RIVALS = ("accelerate", "paging", "diffusers")
