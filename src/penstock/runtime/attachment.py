"""What streaming changes on a module, and how every change is undone.

Layers are wrapped through their instance attribute `forward`, not through torch's hooks: a hook would not run
when a layer is interrupted, and hooked modules leave torch's fused paths, which changes bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from penstock.errors import StreamStateError
from penstock.runtime.binding import BoundWeight, GuardedParameters
from penstock.runtime.executor import Executor
from penstock.runtime.holdings import Holdings
from penstock.runtime.rows import RowLookup, RowTable
from penstock.runtime.schedule import NO_SCHEDULE, Schedule, Site, SlicedLayer
from penstock.runtime.slices import SlicedProduct

_MISSING = object()
_REFUSED = {
    "_apply": "moved or cast (.to, .half, .cuda)",
    "__deepcopy__": "deep-copied",
    "__reduce_ex__": "pickled",
    "share_memory": "shared",
}


class Attachment:
    """Every change made to one module tree, in order, to be undone in reverse."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._undo: list[Callable[[], None]] = []
        self._followed: list[Callable[[], None]] = []

    def set_attribute(self, module: nn.Module, name: str, value: Any) -> Callable[[], None]:
        """Set an instance attribute; returns what puts the old state back."""
        before = module.__dict__.get(name, _MISSING)
        module.__dict__[name] = value

        def undo() -> None:
            if before is _MISSING:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = before

        return undo

    def wrap_pass(self, run: Callable[[Any, Any], Any]) -> None:
        """Let every call of the root go through `run(args, kwargs)`, which calls `root_layer`."""
        self.root_forward = forward = self.root.forward

        @functools.wraps(forward)
        def streamed_pass(*args: Any, **kwargs: Any) -> Any:
            return run(args, kwargs)

        self.root_layer: Callable[..., Any] = forward
        self._undo.append(self.set_attribute(self.root, "forward", streamed_pass))

    def wrap_rows(
        self,
        module: nn.Module,
        parameter: nn.Parameter,
        table: RowTable,
        holdings: Holdings,
        count: Callable[[int, float], None],
    ) -> None:
        """Answer the lookups of `module` from storage."""
        forward = module.forward

        @functools.wraps(forward)
        def looked_up(*args: Any, **kwargs: Any) -> Any:
            if not parameter.is_meta:  # the whole table is in memory just now
                return forward(*args, **kwargs)
            with holdings.looking_up(parameter), RowLookup(parameter, table, count):
                return forward(*args, **kwargs)

        self._undo.append(self.set_attribute(module, "forward", looked_up))

    def await_plan(self, layers: Iterable[nn.Module], plan: Callable[[], None]) -> None:
        """Until something is followed: let a layer that is called see to it that something is, first."""
        for layer in layers:
            if layer is not self.root:
                self._followed.append(self.set_attribute(layer, "forward", _planned_first(layer, plan)))

    def follow(self, executor: Executor | None, schedule: Schedule) -> None:
        """Wrap exactly the layers of `schedule`; layers wrapped before are let go."""
        for undo in reversed(self._followed):
            undo()
        self._followed = []
        self.root_layer = self.root_forward
        if executor is None:
            return
        for layer in schedule.sliced:  # within the layer's own site, which holds what all slices need
            self._wrap(layer.module, functools.partial(_sliced_layer, executor, layer))
        for site in schedule.layers:
            self._wrap(site.module, functools.partial(_layer, executor, site))

    def _wrap(self, module: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put `wrap` around what computes `module`, until the next schedule."""
        if module is self.root:
            self.root_layer = wrap(self.root_layer)
        else:
            self._followed.append(self.set_attribute(module, "forward", wrap(module.forward)))

    def guard(self, weights: Iterable[BoundWeight], absent: Callable[[nn.Parameter], None]) -> None:
        """Report reads of absent weights through their modules' attributes."""
        for module in {id(m): m for weight in weights for m, _ in weight.owners}.values():
            plain = module._parameters
            if not isinstance(plain, GuardedParameters):
                guarded = GuardedParameters(plain, absent)
                module.__dict__["_parameters"] = guarded
                self._undo.append(functools.partial(_unguard, module, guarded))

    def refuse(self, weights: Iterable[BoundWeight]) -> None:
        """Let whatever would move, copy or overwrite absent weights say why it cannot."""
        owners = {id(m): m for weight in weights for m, _ in weight.owners}
        for module in {id(self.root): self.root, **owners}.values():
            for name, what in _REFUSED.items():
                self._undo.append(self.set_attribute(module, name, _refusal(type(module).__name__, what)))
            handle = module.register_load_state_dict_pre_hook(_refuse_loading)
            self._undo.append(handle.remove)

    def materialise_state(self, weights: list[BoundWeight], read: Callable[[BoundWeight], torch.Tensor]) -> None:
        """Let `state_dict()` give the real weights."""
        by_owner: dict[int, tuple[nn.Module, dict[str, BoundWeight]]] = {}
        for weight in weights:
            for module, attribute in weight.owners:
                by_owner.setdefault(id(module), (module, {}))[1][attribute] = weight
        for module, attributes in by_owner.values():
            handle = module.register_state_dict_post_hook(_state_filler(attributes, read))
            self._undo.append(handle.remove)

    def show_device(self, device: torch.device) -> None:
        """Let `.device` of transformers and diffusers models be where they compute, whatever absent weights say."""
        for module in self.root.modules():
            if isinstance(getattr(type(module), "device", None), property):
                self._undo.append(_swap_class(module, device))
                if not hasattr(module, "hf_device_map") and module is self.root:
                    self._undo.append(self.set_attribute(module, "hf_device_map", {"": str(device)}))

    def detach(self) -> None:
        """Undo everything. Safe to call twice."""
        self.follow(None, NO_SCHEDULE)
        while self._undo:
            self._undo.pop()()


def _layer(executor: Executor, site: Site, forward: Callable[..., Any]) -> Callable[..., Any]:
    begin, end, own = executor.begin, executor.end, executor.own

    @functools.wraps(forward)
    def streamed_layer(*args: Any, **kwargs: Any) -> Any:
        call = begin(site)
        try:
            return own(call, forward(*args, **kwargs))
        finally:
            end(call)

    return streamed_layer


def _sliced_layer(executor: Executor, layer: SlicedLayer, forward: Callable[..., Any]) -> Callable[..., Any]:
    module, parts = layer.module, layer.parts

    @functools.wraps(forward)
    def sliced_layer(*args: Any, **kwargs: Any) -> Any:
        (given,) = (*args, *kwargs.values())
        product = SlicedProduct(module, given)
        for item, site in parts:
            call = executor.begin(site) if site is not None else None
            try:
                product.add(item)
            finally:
                if call is not None:
                    executor.end(call)
        return product.result

    return sliced_layer


def _planned_first(layer: nn.Module, plan: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(layer.forward)
    def unplanned_layer(*args: Any, **kwargs: Any) -> Any:
        plan()
        return layer.forward(*args, **kwargs)  # another one by now

    return unplanned_layer


def _unguard(module: nn.Module, guarded: GuardedParameters) -> None:
    if module._parameters is guarded:
        module.__dict__["_parameters"] = dict(guarded)


def _refusal(name: str, what: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise StreamStateError(
            f"{name} is streamed by penstock, most of its weights are not in memory, so it cannot be {what}: "
            "call penstock.restore(module) first"
        )

    return refuse


def _refuse_loading(module: nn.Module, *_: Any) -> None:
    raise StreamStateError(
        f"{type(module).__name__} is streamed by penstock from its checkpoint, so other weights cannot be loaded "
        "into it: call penstock.restore(module) first, or stream the other checkpoint"
    )


def _state_filler(
    attributes: dict[str, BoundWeight], read: Callable[[BoundWeight], torch.Tensor]
) -> Callable[..., None]:
    def fill(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for attribute, weight in attributes.items():
            key = prefix + attribute
            if key in state and state[key].is_meta:
                state[key] = read(weight)

    return fill


def _swap_class(module: nn.Module, device: torch.device) -> Callable[[], None]:
    """As FSDP does: a subclass of the same name, for this one module, with `device` answered."""
    original = type(module)
    streamed = type(original.__name__, (original,), {"device": property(lambda _: device)})
    streamed.__module__, streamed.__qualname__ = original.__module__, original.__qualname__
    module.__class__ = streamed

    def undo() -> None:
        if type(module) is streamed:
            module.__class__ = original

    return undo
