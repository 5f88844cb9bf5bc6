"""All state, weights and gradients of a loop that may be away, and when they could be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import count

import torch

from penstock.errors import PenstockError, StorageError, StreamStateError
from penstock.planning.swap_problem import Absence
from penstock.training.entry import Entry
from penstock.training.iteration import Iteration
from penstock.training.movable import Gradient, Movable, State, Weight, can_leave
from penstock.training.stepping import parts
from penstock.training.tape import GRADIENTS, STEP_BEGINS, STEP_ENDED, STEP_PART, Event


class Movables:
    """What may be away beside what autograd saves. As storages, their numbers follow those of the events.

    Args:
        optimizers: whose state they are.
        iteration: of which they step.
        parameters: whether weights and gradients may be away, too.

    Attributes:
        absences: when each could be.
        until: of gradients, by their number, the segment at whose start nothing holds them any more.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], iteration: Iteration, *, parameters: bool) -> None:
        self._movables: dict[int, Movable] = {}
        self._of: dict[int, list[Movable]] = {}
        self._by_storage: dict[int, Weight] = {}
        self.until: dict[int, int] = {}
        absences: list[Absence] = []
        numbers = count(len(iteration.events))
        for state, gaps in _idle_states(optimizers, iteration.events):
            absences += self._add(next(numbers), state, gaps)
        for idle in iteration.idle if parameters else ():
            number = next(numbers)
            if idle.kind == GRADIENTS:
                absences += self._add(number, Gradient(idle.parameter, idle.nbytes), idle.gaps)
                if idle.until is not None:
                    self.until[number] = idle.until
            elif can_leave(idle.parameter):
                absences += self._add(number, Weight(idle.parameter, idle.nbytes, self._by_storage), idle.gaps)
        self.absences = tuple(absences)

    def _add(self, number: int, movable: Movable, gaps: Iterable[tuple[int, int]]) -> list[Absence]:
        self._movables[number] = movable
        self._of.setdefault(id(movable.parameter), []).append(movable)
        return [Absence(number, movable.nbytes, leaves, returns) for leaves, returns in gaps]

    def get(self, number: int) -> Movable | None:
        """The one of this number, if it is one of these."""
        return self._movables.get(number)

    def weight(self, storage: torch.UntypedStorage) -> Weight | None:
        """The one that has this memory."""
        found = self._by_storage.get(storage._cdata)
        return found if found is not None and found.has(storage) else None

    def gradients(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Their numbers, and whose they are."""
        return ((n, movable.parameter) for n, movable in self._movables.items() if isinstance(movable, Gradient))

    def bring(self, parameters: Iterable[torch.Tensor] | None = None) -> float:
        """Have those of these parameters in memory, or all; the seconds that they were waited for.

        Raises:
            StorageError: some could not be read; the others are there.
        """
        return bring_all(self._movables.values() if parameters is None else self._belonging(parameters))

    def bring_weights(self, parameters: Iterable[torch.Tensor]) -> float:
        """Have these parameters themselves in memory; the seconds that they were waited for.

        Raises:
            StorageError: likewise.
        """
        return bring_all(movable for movable in self._belonging(parameters) if isinstance(movable, Weight))

    def _belonging(self, parameters: Iterable[torch.Tensor]) -> Iterator[Movable]:
        return (movable for parameter in parameters for movable in self._of.get(id(parameter), ()))

    def bring_all_but_states(self) -> float:
        """Have all weights and gradients in memory; the seconds that they were waited for.

        Raises:
            StorageError: likewise.
        """
        return bring_all(movable for movable in self._movables.values() if not movable.is_state)

    def stay(self, away: Collection[int]) -> None:
        """Have in memory whatever is not among those that may be away.

        Raises:
            StorageError: it could not be read.
        """
        bring_all(movable for number, movable in self._movables.items() if number not in away)

    def release(self) -> None:
        """They are in memory, and stay: hold nothing of them any more."""
        for movable in self._movables.values():
            movable.release()

    def forget_states(self) -> list[int]:
        """The optimizers have other state now; the numbers of what they had."""
        numbers = [number for number, movable in self._movables.items() if movable.is_state]
        for number in numbers:
            movable = self._movables.pop(number)
            self._of[id(movable.parameter)].remove(movable)
        return numbers


def bring_all(absent: Iterable[Movable | Entry]) -> float:
    """Have all of these in memory; the seconds that they were waited for.

    Raises:
        StorageError: some could not be read; the others are there.
        StreamStateError: some were written to while they were away; likewise.
    """
    seconds = 0.0
    failure: PenstockError | None = None
    try:
        for each in absent:
            try:
                seconds += each.bring()
            except (StorageError, StreamStateError) as error:
                failure = failure or error
        if failure is not None:
            raise failure
    finally:
        del failure  # which has this frame, and with it what could not be read
    return seconds


def _idle_states(
    optimizers: Sequence[torch.optim.Optimizer], events: Sequence[Event]
) -> Iterator[tuple[State, list[tuple[int, int]]]]:
    """What could be away from one use by a step to the next, and when."""
    for index, optimizer in enumerate(optimizers):
        seen: set[int] = set()
        for part, (_, parameters) in enumerate(parts(optimizer.param_groups)):
            needed = Event(STEP_PART, optimizer=index, part=part)
            used = [at for at, event in enumerate(events) if event == needed]
            until = [at + 1 for at in used]
            if not used:  # the step is one
                used = [at for at, event in enumerate(events) if event == Event(STEP_BEGINS, optimizer=index)]
                until = [_end_of_step(events, at) for at in used]
            for parameter in parameters:
                for value in optimizer.state.get(parameter, {}).values():
                    if used and can_leave(value) and value.untyped_storage()._cdata not in seen:
                        seen.add(value.untyped_storage()._cdata)
                        ends = (*used[1:], used[0] + len(events))
                        yield State(value, parameter), list(zip(until, ends, strict=True))


def _end_of_step(events: Sequence[Event], begin: int) -> int:
    ended = Event(STEP_ENDED, optimizer=events[begin].optimizer)
    return next(at for at in range(begin, len(events)) if events[at] == ended)
