"""An optimizer's step in parts, so that only the state of the part in progress has to be in memory.

torch's optimizers go through their groups of parameters in one loop, each parameter on its own. During a step the list
of groups is one that gives this loop, and nobody else, a group for each part, and tells before each. So the step is
torch's own, whatever is registered around it, and the same to the last bit.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from penstock.errors import PenstockError, StorageError
from penstock.training.iteration import LEAST_NBYTES
from penstock.training.tape import STEP_BEGINS, STEP_ENDED, STEP_PART, Event

Group = dict[str, Any]


def steps_in_parts(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step is known to handle each parameter without looking at others: torch's own but LBFGS's, sparse."""
    if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
        return False
    return str(inspect.unwrap(type(optimizer).step).__module__).startswith("torch.optim.")


def parts(groups: Iterable[Group]) -> Iterator[tuple[Group, list[torch.Tensor]]]:
    """Groups in parts: each large parameter with the small ones that follow it."""
    for group in groups:
        part: list[torch.Tensor] = []
        for parameter in group["params"]:
            if part and parameter.nbytes >= LEAST_NBYTES:
                yield group, part
                part = []
            part.append(parameter)
        yield group, part


class PartedGroups(list[Group]):
    """An optimizer's groups; its own step sees one for each part.

    Args:
        optimizer: whose groups these are, until `restore`.
        begins: called before each part with its number and its parameters.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, begins: Callable[[int, Sequence[torch.Tensor]], None]) -> None:
        self._original: list[Group] = optimizer.param_groups
        super().__init__(self._original)
        self._begins = begins
        self._step = inspect.unwrap(type(optimizer).step).__code__
        optimizer.param_groups = self

    def __iter__(self) -> Iterator[Group]:
        # Closures, hooks and schedulers go through the groups during a step, too, and have to see them whole.
        return self._parts() if sys._getframe(1).f_code is self._step else super().__iter__()

    def _parts(self) -> Iterator[Group]:
        for number, (group, part) in enumerate(parts(list(super().__iter__()))):
            self._begins(number, part)
            yield {**group, "params": part}

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the optimizer the list back that it had, with what was added to this one."""
        if optimizer.param_groups is self:
            self._original[:] = list(super().__iter__())
            optimizer.param_groups = self._original

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return list, (list(super().__iter__()),)  # a copy of the optimizer steps as any other


class Steps:
    """The steps of optimizers, told of as they happen.

    Args:
        optimizers: events name them by their place.
        event: called as a step begins, goes on to its next part, or has ended.
        uses_state: called with the parameters whose state the step uses next.
        stepped: called after a step.
        atomic: whether a step uses all of its state before it changes anything, rather than part by part.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        event: Callable[[Event], None],
        uses_state: Callable[[Iterable[torch.Tensor]], None],
        stepped: Callable[[], None],
        atomic: bool,
    ) -> None:
        self._optimizers, self._is_atomic = optimizers, atomic
        self._event, self._uses_state, self._stepped = event, uses_state, stepped
        self._handles: list[RemovableHandle] = []
        for index, optimizer in enumerate(optimizers):
            self._handles += [
                optimizer.register_step_pre_hook(partial(self._begins, index)),
                optimizer.register_step_post_hook(partial(self._ended, index)),
            ]

    def end(self) -> None:
        """Tell no more; the optimizers are as they were."""
        while self._handles:
            self._handles.pop().remove()
        for optimizer in self._optimizers:
            _whole(optimizer)

    def _begins(self, index: int, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if _is_within_another(optimizer):
            return
        self._event(Event(STEP_BEGINS, optimizer=index))
        if steps_in_parts(optimizer):
            _whole(optimizer)  # where the last step failed
            PartedGroups(optimizer, partial(self._part_begins, index))
        else:
            self._uses_state(_all_parameters(optimizer))

    def _part_begins(self, index: int, part: int, parameters: Iterable[torch.Tensor]) -> None:
        if self._is_atomic and not part:  # nothing is changed before, by a closure neither
            parameters = _all_parameters(self._optimizers[index])
        try:
            self._event(Event(STEP_PART, optimizer=index, part=part))
            self._uses_state(p for p in parameters if p.grad is not None)  # what has no gradient is left out
        except StorageError as error:
            if part:
                error.add_note(
                    "This step has changed some weights and not others, and the state that could not be read is lost: "
                    "go back to a checkpoint."
                )
            raise

    def _ended(self, index: int, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if _is_within_another(optimizer):
            return
        _whole(optimizer)
        try:
            self._event(Event(STEP_ENDED, optimizer=index))
            self._stepped()
        except PenstockError as error:
            error.add_note("The step that has just ended is done: do not repeat it.")
            raise


def _is_within_another(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step that calls this hook was called by another one of the same optimizer, which goes on.

    torch has the hooks called around the `step` of each class (2.13), a derived one's and its parent's.
    """
    step = sys._getframe(2)
    frame, code = step.f_back, step.f_code
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("args", (None,))[0] is optimizer:
            return True
        frame = frame.f_back
    return False


def _all_parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _whole(optimizer: torch.optim.Optimizer) -> None:
    """Its groups are a list as any other again."""
    groups: object = optimizer.param_groups
    if isinstance(groups, PartedGroups):
        groups.restore(optimizer)
