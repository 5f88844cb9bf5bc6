"""Which load comes next: one order once, then another again and again."""

from __future__ import annotations

from collections.abc import Sequence


class LoadOrder:
    """A place in a sequence of loads that does not end.

    Attributes:
        first, then: what comes once, of which `peek` may have seen some already, and what repeats after it.
        lap: how often `then` has begun since the place was set with a lap of 0.
    """

    def __init__(self) -> None:
        self.first: tuple[int, ...] = ()
        self.then: tuple[int, ...] = ()
        self.lap = self._next = 0

    def set(self, first: Sequence[int], then: Sequence[int], lap: int = 0) -> None:
        """Begin with `first`."""
        self.first, self.then, self.lap, self._next = tuple(first), tuple(then), lap, 0

    def peek(self) -> int | None:
        """The load that comes next; None where none does."""
        if self._next == len(self.first):
            self.first, self._next = self.then, 0
            self.lap += 1
            if not self.first:
                return None
        return self.first[self._next]

    def take(self) -> None:
        """Go past the load that `peek` gave."""
        self._next += 1
