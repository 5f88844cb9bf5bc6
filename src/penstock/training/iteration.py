"""From a recorded iteration to what there is to decide: which storages could be away between which segments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from penstock.budget import format_size
from penstock.planning.swap_problem import Absence, Link, SwapProblem
from penstock.training.recipes import Recipes
from penstock.training.recompute import Recipe
from penstock.training.stretches import Idle, find_idle
from penstock.training.tape import SAVED, STEP_BEGINS, STEP_ENDED, STEP_PART, TAKEN, Event, StorageRecord, Tape

_NAMES: dict[str, Callable[[Event], str]] = {
    SAVED: lambda event: f"forward, {format_size(event.nbytes)} saved",
    TAKEN: lambda event: f"backward, {format_size(event.nbytes)} taken",
    STEP_BEGINS: lambda event: "step",
    STEP_PART: lambda event: f"step, part {event.part + 1}",
    STEP_ENDED: lambda event: "after the step",
}

LEAST_NBYTES = 1 << 20
"""Smaller storages stay: a transfer of them costs more than it gives (AutoSwap, section on candidates)."""


@dataclass(frozen=True, eq=False)
class Iteration:
    """One period of a tape, its segments counted from its first event.

    Attributes:
        events: what begins each segment; the runtime checks them off.
        seconds, peak_nbytes: of each segment.
        absences: what could be away; `storage` is the event by which it was first saved.
        recomputable: those of them that could be computed again, by `recipes`.
        recipes: by storage.
        until: for each such storage, the segment at whose start nothing holds it any more.
        lasting_nbytes: of storages that outlive iterations.
        kinds: bytes that live in the segment with the most, by what they are for.
        idle: weights and gradients that could be away, too, if their users agree.
    """

    events: tuple[Event, ...]
    seconds: tuple[float, ...]
    peak_nbytes: tuple[int, ...]
    absences: tuple[Absence, ...]
    until: dict[int, int]
    lasting_nbytes: int
    recomputable: tuple[Absence, ...] = ()
    recipes: Mapping[int, Recipe] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    idle: tuple[Idle, ...] = ()

    def names(self) -> tuple[str, ...]:
        """What each segment begins with, for people."""
        return tuple(_NAMES[event.kind](event) for event in self.events)

    def problem(self, out: Link, back: Link, limit_nbytes: int) -> SwapProblem:
        """What there is to decide within a limit."""
        seconds, load = np.array(self.seconds, dtype=np.float64), np.array(self.peak_nbytes, dtype=np.int64)
        return SwapProblem(seconds, load, self.absences, out, back, limit_nbytes, self.recomputable)


def last_iteration(tape: Tape, period: int) -> Iteration:
    """The last `period` segments of a tape, which are like those before them.

    The very last is not over; the one that it is like is.
    """
    first = len(tape.events) - period
    seconds = (*tape.seconds[first:-1], tape.seconds[first - 1])
    peaks = (*tape.peak_nbytes[first:-1], tape.peak_nbytes[first - 1])
    absences: list[Absence] = []
    until: dict[int, int] = {}
    recipes: dict[int, Recipe] = {}
    kitchen = Recipes(tape, first)
    for record in tape.storages:
        absence = _absence(record, tape.events, first)
        if absence is not None:
            absences.append(absence)
            until[absence.storage] = record.died + 1 - first if record.died is not None else period
            recipe = kitchen.find(record, absence.returns + first)
            if recipe is not None:
                recipes[absence.storage] = recipe
    absences.sort(key=lambda absence: absence.storage)
    lasting_nbytes = sum(record.nbytes for record in tape.storages if record.born < first and record.died is None)
    again = tuple(_again(absence, recipes[absence.storage]) for absence in absences if absence.storage in recipes)
    kinds = _kinds(tape, first - 1 + int(np.argmax(tape.peak_nbytes[first - 1 : -1])))
    idle = tuple(found for found in find_idle(tape, first, LEAST_NBYTES) if found.gaps)
    return Iteration(
        tape.events[first:], seconds, peaks, tuple(absences), until, lasting_nbytes, again, recipes, kinds, idle
    )


def back_before_steps(iteration: Iteration) -> Iteration:
    """The same iteration where nothing is to come back in the middle of a step, but as it begins, or to stay.

    A step in parts changes nothing before the first of them; one that has none may change anything at any time, and
    evaluate the model, so nothing leaves meanwhile either.
    """
    count, steps = len(iteration.events), list(_steps(iteration.events))

    def earlier(absence: Absence) -> Absence:
        turn, returns = divmod(absence.returns, count)
        back = next((begin for begin, end, _ in steps if begin < returns <= end), returns)
        away = next(
            (end for begin, end, is_whole in steps if is_whole and begin < absence.leaves < end), absence.leaves
        )
        return replace(absence, leaves=away, returns=turn * count + back)

    kept = [
        tuple(absence for absence in map(earlier, absences) if absence.leaves < absence.returns)
        for absences in (iteration.absences, iteration.recomputable)
    ]
    return replace(iteration, absences=kept[0], recomputable=kept[1])


def _steps(events: Sequence[Event]) -> Iterator[tuple[int, int, bool]]:
    """Of each step the first segment that changes anything, the one after its end, and whether it has no parts."""
    for at, event in enumerate(events):
        if event.kind == STEP_BEGINS:
            end = events.index(Event(STEP_ENDED, optimizer=event.optimizer), at)
            parts = (part for part in range(at, end) if events[part] == Event(STEP_PART, optimizer=event.optimizer))
            begin = next(parts, None)
            yield (at, end, True) if begin is None else (begin, end, False)


def _kinds(tape: Tape, segment: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for record in tape.storages:
        if record.born <= segment and (record.died is None or record.died >= segment):
            found[record.kind] = found.get(record.kind, 0) + record.nbytes
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _again(absence: Absence, recipe: Recipe) -> Absence:
    """The same, computed again from what autograd saved by these events."""
    sources = tuple(sorted({source.saved for source in recipe.sources() if source.stays is None}))
    return replace(absence, recompute_seconds=recipe.seconds, sources=sources)


def _absence(record: StorageRecord, events: Sequence[Event], first: int) -> Absence | None:
    """Of a saved activation: from its last use before autograd takes it back for the first time, until then."""
    saves = [event for event in record.saves if event >= first]
    if not saves or record.nbytes < LEAST_NBYTES or record.born < first:
        return None
    taken = next((use for use in record.uses if use > saves[0] and events[use].kind == TAKEN), None)
    if taken is None or saves[-1] > taken:
        return None
    last_use = max(use for use in (*record.uses, *saves) if use < taken)
    leaves = last_use + 1 - first
    returns = taken - first
    return Absence(saves[0] - first, record.nbytes, leaves, returns) if leaves < returns else None


def tokens(events: Sequence[Event]) -> tuple[list[Event], list[int]]:
    """What `find_period` asks for."""
    return list(events), [1 if event.kind == SAVED else -1 if event.kind == TAKEN else 0 for event in events]
