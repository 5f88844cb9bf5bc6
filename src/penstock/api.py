"""The public calls: they check what they are given and wire the parts together."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from penstock.budget import Budget
from penstock.checkpoint import Checkpoint, WeightSource
from penstock.dryrun import dry_trace
from penstock.errors import StreamStateError, UnsupportedModelError
from penstock.footprint import Footprint, return_free_memory
from penstock.hub import load_skeleton
from penstock.matching import match
from penstock.planning import Plan
from penstock.planning.strategies import get as get_strategy
from penstock.preview import preview
from penstock.provision import Provision
from penstock.runtime.binding import BoundWeight, GuardedParameters, collect_weights
from penstock.runtime.devices.base import Device
from penstock.runtime.devices.cpu import CpuDevice
from penstock.runtime.reading import read_weight
from penstock.runtime.storage import FileStorage
from penstock.spill import spill
from penstock.stream import Stream

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Parameters = ParamSpec("Parameters")
ResultT = TypeVar("ResultT")
StrPath = str | os.PathLike[str]


def _ordinary(call: Callable[Parameters, ResultT]) -> Callable[Parameters, ResultT]:
    """Tensors that are made under inference mode stay what they are; parameters have to outlive it."""

    @functools.wraps(call)
    def outside(*args: Parameters.args, **kwargs: Parameters.kwargs) -> ResultT:
        with torch.inference_mode(False):
            return call(*args, **kwargs)

    return outside


@_ordinary
def stream(
    module: ModuleT,
    checkpoint: StrPath | None = None,
    *,
    budget: int | str | Budget,
    device: str | torch.device | Device = "cpu",
    example: Any = None,
    strategy: str = "auto",
    offload_folder: StrPath | None = None,
) -> ModuleT:
    """Run `module` within `budget`, its weights streamed from `checkpoint` while it computes.

    The module is changed in place and returned; call it as before, under `torch.inference_mode()`. Streaming it again
    replaces budget, device and strategy, and keeps the checkpoint unless another is given.

    Args:
        module: any module; its present weights are not read if `checkpoint` is given.
        checkpoint: a safetensors file, a folder of Hub shards with its index, or None to write the module's present
            weights to `offload_folder` first.
        budget: bytes, or a size such as `"512MiB"`, for everything that the module needs.
        device: where it computes: `"cpu"`.
        example: arguments of a typical call (a tensor, a tuple, or a mapping of keywords): plans at once rather than
            at the first call.
        strategy: how to plan; `"auto"` or `"balanced"`.
        offload_folder: where weights are written if `checkpoint` is None; a temporary folder if None.

    Raises:
        BudgetError, BudgetInfeasibleError: the budget is no size, or too small.
        CheckpointError, CheckpointMismatchError: the checkpoint is damaged or not this module's.
        UnsupportedModelError: the module cannot be streamed.
        StorageError: weights could not be written.
    """
    cap, target = Budget(budget), _device(device)
    get_strategy(strategy)
    _check_module(module)
    footprint = Footprint(held_nbytes=_held_nbytes(module))
    if (earlier := _stream_of(module)) is not None:
        _stream_again(module, earlier, checkpoint, cap, target, strategy, example, footprint)
        return module
    folder: Path | None = None
    if checkpoint is None:
        opened, folder = spill(module, offload_folder)
        sources = dict(opened.tensors)  # parameters only: buffers stay where they are
    else:
        opened = Checkpoint.open(checkpoint)
        sources = match(module, opened)
    try:
        if example is not None:  # before the module gives anything up
            _preview(module, opened, sources, cap, target, strategy, *_arguments(example))
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    _start(module, opened, sources, cap, target, strategy, example, folder, footprint)
    return module


@_ordinary
def from_pretrained(
    cls: type[ModuleT],
    path: StrPath,
    *,
    budget: int | str | Budget,
    device: str | torch.device | Device = "cpu",
    example: Any = None,
    strategy: str = "auto",
    **same: Any,
) -> ModuleT:
    """`cls.from_pretrained(path, **same)`, streamed: never more than the budget in memory, also while loading.

    Args:
        cls: a transformers or diffusers class, Auto classes included.
        path: a local folder.
        budget, device, example, strategy: as for `stream`.
        same: what `cls.from_pretrained` takes.

    Raises:
        UnsupportedModelError: the weights cannot be read in place; `penstock pack` can convert them.
        BudgetError, BudgetInfeasibleError, CheckpointError, CheckpointMismatchError: as for `stream`.
    """
    cap, target = Budget(budget), _device(device)
    get_strategy(strategy)
    footprint = Footprint()
    skeleton = load_skeleton(cls, path, **same)
    module: ModuleT = skeleton.module  # type: ignore[assignment]
    _check_module(module)
    _start(module, skeleton.checkpoint, skeleton.sources, cap, target, strategy, example, None, footprint)
    return module


@_ordinary
def restore(module: ModuleT) -> ModuleT:
    """Make a streamed module a plain resident one again: all weights in memory, nothing of Penstock left on it.

    Raises:
        StreamStateError: it is not streamed.
        CheckpointError, StorageError: its weights cannot be read; it is still streamed then.
    """
    handle = inspect(module)
    storage = FileStorage(handle.checkpoint.files)
    try:
        loaded = [
            read_weight(storage, weight.source, realign=weight.is_aligned or weight.must_move)
            for weight in handle.weights
        ]
    finally:
        storage.close()
    handle.close()
    for weight, data in zip(handle.weights, loaded, strict=True):
        weight.bind(data)
    return module


def inspect(module: nn.Module) -> Stream:
    """The handle of a streamed module.

    Raises:
        StreamStateError: it is not streamed.
    """
    found = _stream_of(module)
    if found is None:
        raise StreamStateError(f"this {type(module).__name__} is not streamed: call penstock.stream on it first")
    return found


@_ordinary
def plan(
    module: nn.Module,
    checkpoint: StrPath | None = None,
    *,
    budget: int | str | Budget,
    example: Any,
    device: str | torch.device | Device = "cpu",
    strategy: str = "auto",
) -> Plan:
    """The plan that `stream` would follow, without running anything. The module is as before afterwards.

    Args:
        checkpoint: a safetensors file or a folder of Hub shards; None if `module` is streamed already.
        example: arguments of the call to plan for, as for `stream`.
        budget, device, strategy: as for `stream`.

    Raises:
        BudgetInfeasibleError: no plan fits; `.needed_nbytes` would.
        StreamStateError: `module` is not streamed and no checkpoint is given, or is streamed and one is.
        CheckpointError, CheckpointMismatchError, UnsupportedModelError: as for `stream`.
    """
    cap, target = Budget(budget), _device(device)
    args, kwargs = _arguments(example)
    _check_module(module)
    if checkpoint is None:
        return inspect(module).preview(args, kwargs, budget=cap, strategy=strategy)
    if _stream_of(module) is not None:
        raise StreamStateError(
            "this module is streamed already: leave `checkpoint` out, or call penstock.restore first"
        )
    opened = Checkpoint.open(checkpoint)
    return _preview(module, opened, match(module, opened), cap, target, strategy, args, kwargs)


def _start(
    module: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[str, WeightSource],
    budget: Budget,
    device: Device,
    strategy: str,
    example: Any,
    folder: Path | None,
    footprint: Footprint,
) -> Stream:
    weights = _collect(module, sources, device)
    _load_buffers(module, checkpoint, sources)
    provision = Provision(
        module,
        checkpoint,
        weights,
        budget=budget,
        device=device,
        strategy=strategy,
        fixed_nbytes=_fixed_nbytes(module, weights),
        footprint=footprint,
        owned_folder=folder,
    )
    handle = Stream(provision)
    was_resident = any(not weight.parameter.is_meta for weight in weights)
    handle.attach()
    return_free_memory()  # what the weights leave behind would count as growth
    try:
        handle.prepare(_arguments(example) if example is not None else None)
    except BaseException:
        restore(module) if was_resident else handle.close(remove_files=False)
        raise
    return handle


def _stream_again(
    module: nn.Module,
    earlier: Stream,
    checkpoint: StrPath | None,
    budget: Budget,
    device: Device,
    strategy: str,
    example: Any,
    footprint: Footprint,
) -> None:
    """Another budget, device, strategy or checkpoint for a streamed module; if that cannot be, all is as before."""
    before = {weight.name: weight.source for weight in earlier.weights}
    folder = earlier.owned_folder if earlier.is_own_process else None
    if checkpoint is None:
        opened, sources = earlier.checkpoint, before
        if example is not None and earlier.is_own_process:
            earlier.preview(*_arguments(example), budget=budget, strategy=strategy)
    else:
        opened = Checkpoint.open(checkpoint)
        sources = match(module, opened)
    earlier.close(remove_files=False)
    try:
        kept = folder if checkpoint is None else None
        _start(module, opened, sources, budget, device, strategy, example, kept, footprint)
    except BaseException:
        _start(
            module,
            earlier.checkpoint,
            before,
            earlier.budget,
            earlier.device,
            earlier.strategy,
            None,
            folder,
            footprint,
        )
        raise
    if checkpoint is not None and folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _preview(
    module: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[str, WeightSource],
    budget: Budget,
    device: Device,
    strategy: str,
    args: Any,
    kwargs: Any,
) -> Plan:
    """The plan for a module that is not streamed and stays as it is."""
    weights = _collect(module, sources, device)
    return preview(
        module,
        weights,
        checkpoint,
        args,
        kwargs,
        dry=lambda args, kwargs: dry_trace(module, module.forward, weights, args, kwargs),
        budget=budget,
        strategy=strategy,
        fixed_nbytes=_fixed_nbytes(module, weights),
    )


def _collect(module: nn.Module, sources: Mapping[str, WeightSource], device: Device) -> list[BoundWeight]:
    weights = collect_weights(module, dict(sources), device.torch_device)
    if not weights:
        raise UnsupportedModelError(f"{type(module).__name__} has no weights to stream")
    return weights


def _fixed_nbytes(module: nn.Module, weights: list[BoundWeight]) -> int:
    """Buffers, and parameters that are not streamed: in memory all the time."""
    streamed = {id(weight.parameter) for weight in weights}
    fixed = [p for p in module.parameters() if id(p) not in streamed] + list(module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in fixed)


def _load_buffers(module: nn.Module, checkpoint: Checkpoint, sources: Mapping[str, WeightSource]) -> None:
    """Persistent buffers are small and may be written to: they stay in memory."""
    storage = FileStorage(checkpoint.files)
    try:
        for name, buffer in list(module.named_buffers()):
            source = sources.get(name)
            if source is not None:
                data = read_weight(storage, source)
                owner, _, attribute = name.rpartition(".")
                if buffer.is_meta:
                    module.get_submodule(owner)._buffers[attribute] = data
                else:
                    buffer.copy_(data)
    finally:
        storage.close()
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            raise UnsupportedModelError(
                f"buffer {name!r} is on the meta device and the checkpoint does not hold it: give it its values before "
                "streaming, or load the module with penstock.from_pretrained"
            )


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def _device(device: str | torch.device | Device) -> Device:
    if isinstance(device, Device):
        return device
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = ""
    if kind != "cpu":
        raise UnsupportedModelError(f"device {str(device)!r} is not supported: penstock streams to 'cpu'")
    return CpuDevice()


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(f"penstock streams a torch.nn.Module, not a {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError("TorchScript modules cannot be streamed: stream the module that was scripted")
    is_guarded = any(isinstance(part._parameters, GuardedParameters) for part in module.modules())
    if is_guarded and not any(_stream_of(part) for part in module.modules()):
        raise StreamStateError("this is part of a module that is streamed: call penstock.restore on that one first")
    for parent in module.modules():
        if parent is not module and _stream_of(parent) is not None:
            raise StreamStateError("a part of this module is streamed already: call penstock.restore on it first")


def _held_nbytes(module: nn.Module) -> int:
    """Bytes of the module's parameters that are in memory and will be given up."""
    if _stream_of(module) is not None:
        return 0
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.device.type == "cpu")


def _stream_of(module: nn.Module) -> Stream | None:
    found = module.__dict__.get("_penstock_stream")
    return found if isinstance(found, Stream) else None
