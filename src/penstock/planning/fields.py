"""Typed access to parsed JSON: every wrong type or range becomes a `PlanError` that names the field.

Plans and problems come from files that anybody may have written, so nothing is used before it went through here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from penstock.errors import PlanError

_T = TypeVar("_T")

MAX_NBYTES = 2**62  # far above any memory, low enough that sums of a few of them stay exact everywhere
MAX_ITEMS = 10_000_000


def parse_object(text: str | bytes, what: str) -> Fields:
    """The JSON object in `text`.

    Raises:
        PlanError: it is not JSON, or not an object. `what` names it in the message.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"this {what} is not JSON ({error}): make it again") from error
    return Fields(value, what)


class Fields:
    """One JSON object whose fields are taken out by type; `path` is how messages call it."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise PlanError(f"{path} is {_kind(value)}, not an object: make it again")
        self._value: dict[str, Any] = value
        self._path = path

    def integer(self, name: str, low: int, high: int = MAX_NBYTES) -> int:
        """An integer field within [low, high]."""
        return as_integer(self._take(name), f"{self._path}.{name}", low, high)

    def optional_integer(self, name: str, low: int, high: int = MAX_NBYTES) -> int | None:
        """An integer field within [low, high], or null."""
        value = self._take(name)
        return None if value is None else as_integer(value, f"{self._path}.{name}", low, high)

    def seconds(self, name: str) -> float:
        """A finite number, zero or above."""
        return as_seconds(self._take(name), f"{self._path}.{name}")

    def text(self, name: str) -> str:
        """A string field."""
        return as_text(self._take(name), f"{self._path}.{name}")

    def flag(self, name: str) -> bool:
        """A boolean field."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise PlanError(f"{self._path}.{name} is {_kind(value)}, not true or false: make it again")
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """A string field that is one of `choices`."""
        value = self.text(name)
        if value not in choices:
            raise PlanError(f"{self._path}.{name} is {value!r}, not one of {', '.join(choices)}: make it again")
        return value

    def record(self, name: str) -> Fields:
        """An object field."""
        return Fields(self._take(name), f"{self._path}.{name}")

    def items(self, name: str, read: Callable[[object, str], _T]) -> tuple[_T, ...]:
        """A list field, each item read by `read(item, its path)`."""
        value = self._take(name)
        path = f"{self._path}.{name}"
        if not isinstance(value, list):
            raise PlanError(f"{path} is {_kind(value)}, not a list: make it again")
        return tuple(read(item, f"{path}[{index}]") for index, item in enumerate(value))

    def optional(self, name: str, read: Callable[[Fields, str], _T]) -> _T | None:
        """A field that may be null, read by `read(self, name)` where it is not."""
        if self._value.get(name, name) is None:
            self._take(name)
            return None
        return read(self, name)

    def finish(self) -> None:
        """Refuse fields that nobody took: they may change the meaning."""
        if self._value:
            raise PlanError(f"{self._path} has an unknown field {next(iter(self._value))!r}: make it again")

    def _take(self, name: str) -> object:
        if name not in self._value:
            raise PlanError(f"{self._path}.{name} is missing: make it again")
        return self._value.pop(name)


def as_integer(value: object, path: str, low: int, high: int = MAX_NBYTES) -> int:
    """`value` as an integer within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"{path} is {_kind(value)}, not an integer: make it again")
    if not low <= value <= high:
        raise PlanError(f"{path} is {value}, outside {low} to {high}: make it again")
    return value


def as_nbytes(value: object, path: str) -> int:
    """`value` as a number of bytes, at least one."""
    return as_integer(value, path, 1)


def as_seconds(value: object, path: str) -> float:
    """`value` as a finite number, zero or above."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"{path} is {_kind(value)}, not a number: make it again")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise PlanError(f"{path} is not a finite number, zero or above: make it again")
    return number


def as_text(value: object, path: str) -> str:
    """`value` as a string."""
    if not isinstance(value, str):
        raise PlanError(f"{path} is {_kind(value)}, not a string: make it again")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "a list"}.get(
        type(value), "an object"
    )
