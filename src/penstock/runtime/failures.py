"""Loads that failed, until somebody who wants one meets its error."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.errors import PenstockError, StorageError


class Failures:
    """The errors of loads, each to be raised once, in the thread that waits for the load."""

    def __init__(self) -> None:
        self._errors: dict[int, BaseException] = {}
        self._forgiven: set[int] = set()  # in flight, and nobody is to meet its error

    def __contains__(self, load: int) -> bool:
        return load in self._errors

    def note(self, load: int, error: BaseException) -> None:
        """A load has failed; nobody meets the error of one that was forgiven in advance."""
        if load not in self._forgiven:
            self._errors[load] = error

    def arrived(self, load: int) -> None:
        """It is in flight no more."""
        self._forgiven.discard(load)

    def meet(self, load: int) -> None:
        """Raise the error of `load` if it failed."""
        if load in self._errors:
            raise _reraisable(self._errors.pop(load))

    def forget(self, load: int) -> None:
        """Nobody wants to know of this one."""
        self._errors.pop(load, None)

    def forgive(self, in_flight: Iterable[int]) -> bool:
        """Forget all errors, and in advance those of the loads `in_flight`; whether there were any."""
        self._forgiven = set(in_flight)
        had_any = bool(self._errors)
        self._errors.clear()
        return had_any


def _reraisable(error: BaseException) -> BaseException:
    """A fresh error for each caller: raising one object twice would grow its traceback and hide the second place."""
    if isinstance(error, PenstockError):
        return type(error)(*error.args)
    return StorageError(f"reading weights failed: {error!r}")
