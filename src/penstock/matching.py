"""Which checkpoint tensor belongs to which parameter or buffer of a module."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from penstock.checkpoint import Checkpoint, WeightSource
from penstock.errors import CheckpointMismatchError

_SHOWN = 5


def match(module: torch.nn.Module, checkpoint: Checkpoint) -> dict[str, WeightSource]:
    """Where the bytes of each parameter and persistent buffer of `module` are, by its first name in the state dict.

    Names must be the checkpoint's. A tensor that the module holds under several names needs one of them in the
    checkpoint; if several are there, the last one counts, as in `load_state_dict`. For a transformers model the
    checkpoint may have its `base_model_prefix` too much or too little.

    Raises:
        CheckpointMismatchError: anything is missing, unexpected, or of another shape or dtype.
    """
    state = {
        name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if isinstance(tensor, torch.Tensor)
    }
    first_name: dict[int, str] = {}
    for name, tensor in state.items():
        first_name.setdefault(id(tensor), name)
    found, unexpected = _resolve(state, checkpoint, _prefix(module))
    sources: dict[str, WeightSource] = {}
    wrong = []
    for name, tensor in state.items():
        if name not in found:
            continue
        source = checkpoint.tensors[found[name]]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if source.shape != tuple(tensor.shape):
            wrong.append(f"{name} has shape {list(source.shape)}, the module's is {list(tensor.shape)}")
        elif source.dtype != dtype:
            wrong.append(f"{name} is {source.dtype}, the module's is {dtype}")
        sources[first_name[id(tensor)]] = source
    missing = [name for name in first_name.values() if name not in sources]
    if missing or unexpected or wrong:
        raise CheckpointMismatchError(_message(module, checkpoint, missing, unexpected, wrong))
    return {name: sources[name] for name in first_name.values()}


def listed(names: Iterable[str]) -> str:
    """At most five of `names`, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def is_of(cls: type, library: str) -> bool:
    """Whether `cls` derives from a class of `library`, told without importing it."""
    return any(base.__module__.split(".")[0] == library for base in cls.__mro__)


def _prefix(module: torch.nn.Module) -> str:
    prefix = getattr(module, "base_model_prefix", "") if is_of(type(module), "transformers") else ""
    return f"{prefix}." if isinstance(prefix, str) and prefix else ""


def _resolve(state: dict[str, torch.Tensor], checkpoint: Checkpoint, prefix: str) -> tuple[dict[str, str], list[str]]:
    """State-dict name -> checkpoint key, and the keys that belong to none."""
    found = {key: key for key in checkpoint.tensors if key in state}
    unexpected = []
    for key in checkpoint.tensors:
        if key in found:
            continue
        renamed = key.removeprefix(prefix) if prefix and key.startswith(prefix) else prefix + key
        if prefix and renamed in state and renamed not in found:
            found[renamed] = key
        else:
            unexpected.append(key)
    return found, unexpected


def _message(
    module: torch.nn.Module, checkpoint: Checkpoint, missing: list[str], unexpected: list[str], wrong: list[str]
) -> str:
    where = checkpoint.files[0].path if len(checkpoint.files) == 1 else checkpoint.files[0].path.parent
    problems = [
        f"{what} {listed(names)}"
        for what, names in (("missing:", missing), ("unexpected:", unexpected), ("different:", wrong))
        if names
    ]
    if is_of(type(module), "transformers") or is_of(type(module), "diffusers"):
        remedy = f"load it with penstock.from_pretrained({type(module).__name__}, ...), which renames and converts keys"
    elif wrong and not missing and not unexpected:
        remedy = "build the module as it was saved (module.to(dtype) sets its dtype), or convert the checkpoint"
    else:
        remedy = "give the checkpoint of this module, with the keys of its state_dict()"
    return f"{where} is not the checkpoint of this {type(module).__name__}: {'; '.join(problems)}: {remedy}"
