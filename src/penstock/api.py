"""The public calls: they check what they are given and wire the parts together."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from penstock.budget import Budget
from penstock.errors import StreamStateError, UnsupportedModelError
from penstock.footprint import Footprint
from penstock.hub import load_skeleton
from penstock.planning import Plan, PlanOptions
from penstock.report.curve import Curve
from penstock.runtime.binding import GuardedParameters
from penstock.runtime.devices.base import Device
from penstock.starting import Call, Origin, plain_workload, start, start_again
from penstock.stream import Stream
from penstock.terms import Terms, device_of
from penstock.workload import Workload

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
    max_overhead: float | None = None,
    least_memory: bool = False,
    exact: bool = False,
    lam: float | None = None,
    peak_nbytes: int | None = None,
    time_limit_seconds: float | None = None,
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
        strategy: how to plan; `"auto"`, or one of `penstock.planning.strategies.names()`.
        max_overhead: use as little memory as lets a pass take, as predicted, `1 + max_overhead` times its compute.
        least_memory: use as little memory as the strategy can.
        exact: compute no layer in slices, so that every bit is the resident model's. Otherwise a plan may, where it is
            at least 1 % faster so or fits in no other way; such layers' results are equal within rounding.
        lam, peak_nbytes, time_limit_seconds: for `strategy="flashmem"`: see `penstock.planning.PlanOptions`.
        offload_folder: where weights are written if `checkpoint` is None; a temporary folder if None.

    Raises:
        BudgetError, BudgetInfeasibleError: the budget is no size, or too small.
        PlanError: there is no such strategy, options contradict one another, or an overhead is out of reach.
        CheckpointError, CheckpointMismatchError: the checkpoint is damaged or not this module's.
        UnsupportedModelError: the module cannot be streamed.
        StorageError: weights could not be written.
    """
    options = PlanOptions(max_overhead, least_memory, exact, lam, peak_nbytes, time_limit_seconds)
    terms = Terms.of(budget, device, strategy, options)
    _check_module(module)
    footprint = Footprint(held_nbytes=_held_nbytes(module))
    call = _call(example)
    if (earlier := _stream_of(module)) is not None:
        start_again(module, earlier, checkpoint, call, terms, footprint)
        return module
    origin = Origin.spilled(module, offload_folder) if checkpoint is None else Origin.of(module, checkpoint)
    try:
        if call is not None:  # before the module gives anything up
            found = plain_workload(module, origin, call, terms.device, footprint)
            found.plan(terms.budget.nbytes, terms.strategy, terms.options)
    except BaseException:
        origin.remove_files()
        raise
    start(module, origin, call, terms, footprint)
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
    max_overhead: float | None = None,
    least_memory: bool = False,
    exact: bool = False,
    lam: float | None = None,
    peak_nbytes: int | None = None,
    time_limit_seconds: float | None = None,
    **same: Any,
) -> ModuleT:
    """`cls.from_pretrained(path, **same)`, streamed: never more than the budget in memory, also while loading.

    Args:
        cls: a transformers or diffusers class, Auto classes included.
        path: a local folder.
        budget, device, example, strategy and what follows it: as for `stream`.
        same: what `cls.from_pretrained` takes.

    Raises:
        UnsupportedModelError: the weights cannot be read in place; `penstock pack` can convert them.
        BudgetError, BudgetInfeasibleError, PlanError, CheckpointError, CheckpointMismatchError: as for `stream`.
    """
    options = PlanOptions(max_overhead, least_memory, exact, lam, peak_nbytes, time_limit_seconds)
    terms = Terms.of(budget, device, strategy, options)
    footprint = Footprint()
    skeleton = load_skeleton(cls, path, **same)
    module: ModuleT = skeleton.module  # type: ignore[assignment]
    _check_module(module)
    origin = Origin(skeleton.checkpoint, skeleton.sources)
    start(module, origin, _call(example), terms, footprint)
    return module


@_ordinary
def restore(module: ModuleT) -> ModuleT:
    """Make a streamed module a plain resident one again: all weights in memory, nothing of Penstock left on it.

    Raises:
        StreamStateError: it is not streamed.
        CheckpointError, StorageError: its weights cannot be read; it is still streamed then.
    """
    inspect(module).make_resident()
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
    max_overhead: float | None = None,
    least_memory: bool = False,
    exact: bool = False,
    lam: float | None = None,
    peak_nbytes: int | None = None,
    time_limit_seconds: float | None = None,
) -> Plan:
    """The plan that `stream` would follow, without running anything. The module is as before afterwards.

    Args:
        checkpoint: a safetensors file or a folder of Hub shards; None if `module` is streamed already.
        example: arguments of the call to plan for, as for `stream`.
        budget, device, strategy and what follows it: as for `stream`.

    Raises:
        BudgetInfeasibleError: no plan fits; `.needed_nbytes` would.
        PlanError: as for `stream`.
        StreamStateError: `module` is not streamed and no checkpoint is given, or is streamed and one is.
        CheckpointError, CheckpointMismatchError, UnsupportedModelError: as for `stream`.
    """
    options = PlanOptions(max_overhead, least_memory, exact, lam, peak_nbytes, time_limit_seconds)
    terms = Terms.of(budget, device, strategy, options)
    return _workload(module, checkpoint, example, terms.device).plan(terms.budget.nbytes, terms.strategy, options)


@_ordinary
def sweep(
    module: nn.Module,
    checkpoint: StrPath | None = None,
    *,
    example: Any,
    budgets: Sequence[int | str | Budget] | None = None,
    strategies: Sequence[str] | None = None,
    device: str | torch.device | Device = "cpu",
) -> Curve:
    """How fast `module` would be within each of many budgets, by each strategy; nothing is run.

    `penstock.report` draws the result: `save_picture(curve, path)` and `save_page(curve, path)`.

    Args:
        budgets: sizes as for `stream`; if None, about sixteen from the least to what holds every weight.
        strategies: by name; if None, all that can plan here.
        checkpoint, example, device: as for `plan`.

    Raises:
        PlanError: there is no such strategy.
        BudgetError: a budget is no size.
        StreamStateError, CheckpointError, CheckpointMismatchError, UnsupportedModelError: as for `plan`.
    """
    sizes = [Budget(size).nbytes for size in budgets] if budgets is not None else None
    found = _workload(module, checkpoint, example, device_of(device))
    return found.sweep(type(module).__name__, sizes, strategies)


def _workload(module: nn.Module, checkpoint: StrPath | None, example: Any, device: Device) -> Workload:
    """What calls like `example` ask of any budget."""
    call = _call(example) or ((), {})
    _check_module(module)
    if checkpoint is None:
        return inspect(module).workload(*call)
    if _stream_of(module) is not None:
        raise StreamStateError(
            "this module is streamed already: leave `checkpoint` out, or call penstock.restore first"
        )
    return plain_workload(module, Origin.of(module, checkpoint), call, device, Footprint())


def _call(example: Any) -> Call | None:
    """Positional and keyword arguments of the call that `example` stands for."""
    if example is None:
        return None
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


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
