"""Optimizer state that lies idle from one step to the next: away until the part of the step that uses it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import torch

from penstock.errors import StorageError
from penstock.planning.swap_problem import Absence
from penstock.runtime.binding import unreadable
from penstock.training.entry import Entry
from penstock.training.iteration import LEAST_NBYTES
from penstock.training.mover import Mover, Place
from penstock.training.stepping import parts
from penstock.training.swapfile import room_nbytes
from penstock.training.tape import STEP_BEGINS, STEP_ENDED, STEP_PART, Event


class State:
    """One tensor of an optimizer's state, which stays the same object: its memory goes and comes.

    Args:
        tensor: as the optimizer holds it.
        parameter: whose state it is.

    Attributes:
        entry: by which its memory went the last time; None before.
    """

    def __init__(self, tensor: torch.Tensor, parameter: torch.Tensor) -> None:
        self.tensor, self.parameter = tensor, parameter
        self.entry: Entry | None = None
        self._offset: int | None = None  # in the file
        self._geometry = tensor.storage_offset(), tensor.size(), tensor.stride()
        self._hollow = unreadable(tuple(tensor.shape), tensor.dtype, tensor.device, tensor.stride())

    def allot(self, mover: Mover) -> None:
        """Have room in the file, for as long as there is one.

        Raises:
            StorageError: the disk has none.
        """
        if self._offset is None:
            self._offset = mover.file.allot(room_nbytes(self.tensor.untyped_storage().nbytes()))

    def leave(self, mover: Mover, place: Place) -> Entry | None:
        """Begin to write it; what it comes back by. None where it is away, or on its way, already."""
        assert self._offset is not None, "there is room for it"
        if self.entry is not None and (self.entry.storage is None or self.entry.is_leaving):
            self.entry.place = place
            return None
        self.entry = Entry(self.tensor.untyped_storage(), mover, self._offset, place)
        self.entry.hold(self.tensor, self._hollow)
        self.entry.leave()
        return self.entry

    def present(self) -> float:
        """Have it in memory; the seconds that it was waited for.

        Raises:
            StorageError: it could not be read.
        """
        if self.entry is None:
            return 0.0
        storage, seconds = self.entry.present()
        if self.tensor.is_meta or self.tensor.untyped_storage()._cdata != storage._cdata:
            self.tensor.data = torch.empty(0, dtype=self.tensor.dtype).set_(storage, *self._geometry)
        return seconds


class States:
    """All state of optimizers that may be away, by its numbers as storages."""

    def __init__(self, states: Mapping[int, State]) -> None:
        self._states = dict(states)
        self._of: dict[int, list[State]] = {}
        for state in self._states.values():
            self._of.setdefault(id(state.parameter), []).append(state)

    def get(self, number: int) -> State | None:
        """The one of this number, if it is one of these."""
        return self._states.get(number)

    def numbers(self) -> list[int]:
        """Of all."""
        return list(self._states)

    def present(self, parameters: Iterable[torch.Tensor] | None = None) -> float:
        """Have those of these parameters in memory, or all; the seconds that they were waited for.

        Raises:
            StorageError: some could not be read; the others are there.
        """
        of = (self._of.get(id(parameter), []) for parameter in parameters) if parameters is not None else ()
        chosen = chain.from_iterable(of) if parameters is not None else self._states.values()
        seconds, failures = 0.0, []
        for state in chosen:
            try:
                seconds += state.present()
            except StorageError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return seconds

    def stay(self, leaving: Collection[int]) -> None:
        """Have in memory whatever is not among those that leave.

        Raises:
            StorageError: it could not be read.
        """
        for number, state in self._states.items():
            if number not in leaving:
                state.present()

    def release(self) -> None:
        """They are in memory, and stay: hold nothing of them any more."""
        for state in self._states.values():
            state.entry = None

    def forget(self) -> None:
        """The optimizer has other ones now."""
        self._states.clear()
        self._of.clear()


def idle_states(
    optimizers: Sequence[torch.optim.Optimizer], events: Sequence[Event]
) -> Iterator[tuple[State, list[Absence]]]:
    """What could be away from one use by a step to the next, and when.

    Its numbers as storages follow those of the events.
    """
    number = len(events)
    for index, optimizer in enumerate(optimizers):
        seen: set[int] = set()
        for part, (_, parameters) in enumerate(parts(optimizer.param_groups)):
            needed = Event(STEP_PART, index, part)
            used = [at for at, event in enumerate(events) if event == needed]
            until = [at + 1 for at in used]
            if not used:  # the step is one
                used = [at for at, event in enumerate(events) if event == Event(STEP_BEGINS, index)]
                until = [_end_of_step(events, at) for at in used]
            for parameter in parameters:
                for value in optimizer.state.get(parameter, {}).values():
                    if used and _can_leave(value) and value.untyped_storage()._cdata not in seen:
                        seen.add(value.untyped_storage()._cdata)
                        nbytes, ends = value.untyped_storage().nbytes(), (*used[1:], used[0] + len(events))
                        pairs = zip(until, ends, strict=True)
                        yield State(value, parameter), [Absence(number, nbytes, *pair) for pair in pairs]
                        number += 1


def _end_of_step(events: Sequence[Event], begin: int) -> int:
    return next(at for at in range(begin, len(events)) if events[at] == Event(STEP_ENDED, events[begin].nbytes))


def _can_leave(value: object) -> bool:
    return (
        type(value) is torch.Tensor
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.untyped_storage().nbytes() == value.numel() * value.element_size() >= LEAST_NBYTES
    )
