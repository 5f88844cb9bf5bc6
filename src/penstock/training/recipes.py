"""From a tape: how a saved activation could be computed again at the moment at which it is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penstock.training.recompute import MOST_OPERATIONS, Recipe, Source, aten
from penstock.training.tape import Read, StorageRecord, Tape

_BATCH_NORM_STATISTICS, _BATCH_NORM_TRAINS = (3, 4), 5  # arguments


class Recipes:
    """Recipes for one iteration.

    Args:
        tape: of all iterations.
        first: the event with which the iteration begins.
    """

    def __init__(self, tape: Tape, first: int) -> None:
        self._tape, self._first = tape, first

    def find(self, record: StorageRecord, returns: int) -> Recipe | None:
        """How this storage could be made before event `returns` of the tape; None if it cannot."""
        found = self._recipe(record, returns)
        return found if found is not None and sum(1 for _ in _operations(found)) <= MOST_OPERATIONS else None

    def _recipe(self, record: StorageRecord, returns: int) -> Recipe | None:
        made = record.made
        if made is None or not self._is_unchanged(record, made.at, returns):
            return None
        given = (*made.arguments, *made.keywords.values())
        if len({value.where[-1] for value in given if isinstance(value, Read)}) > 1:
            return None  # mixed types have results of mixed types
        arguments = list(made.arguments)
        if made.operation is aten.native_batch_norm.default:
            if not arguments[_BATCH_NORM_TRAINS]:
                return None
            for index in _BATCH_NORM_STATISTICS:
                arguments[index] = None  # they have seen this batch already, and only go along
        found = [self._argument(value, made.at, returns) for value in (*arguments, *made.keywords.values())]
        if any(value is NotImplemented for value in found):
            return None
        keywords = dict(zip(made.keywords, found[len(arguments) :], strict=True))
        inner = (value.seconds for value in found if isinstance(value, Recipe))
        return Recipe(made.operation, tuple(found[: len(arguments)]), keywords, made.where, made.seconds + sum(inner))

    def _argument(self, value: Any, at: int, returns: int) -> Any:
        """What it will be read from; `NotImplemented` if it is not there any more."""
        if not isinstance(value, Read):
            return value
        record = value.record
        stays = self._tape.known.get(record)
        if stays is not None and self._is_unchanged(record, at, returns):
            return Source(-1, value.where, stays)
        saved = next((event for event in record.saves if event >= self._first), None)
        lives = record.died is None or record.died >= returns
        if saved is not None and saved < returns and lives and self._is_unchanged(record, at, returns):
            return Source(saved - self._first, value.where)
        recipe = self._recipe(record, returns)
        is_whole = recipe is not None and recipe.where == value.where
        return recipe if is_whole else NotImplemented

    def _is_unchanged(self, record: StorageRecord, since: int, returns: int) -> bool:
        """Whether nothing wrote to it from an operation until an event."""
        return not any(since < at <= self._tape.operations[returns] for at in record.writes)


def _operations(recipe: Recipe) -> Iterator[Recipe]:
    yield recipe
    for value in (*recipe.arguments, *recipe.keywords.values()):
        if isinstance(value, Recipe):
            yield from _operations(value)
