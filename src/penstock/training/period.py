"""The period of an iteration, from what happens in it (SmartPool, arXiv 1903.06631, section on iteration detection)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def find_period(tokens: Sequence[Hashable], balance: Sequence[int], *, is_marked: bool = False) -> int | None:
    """The smallest number of tokens that the sequence ends with twice, the one right after the other.

    Layers repeat within an iteration, too. What tells an iteration from a part of it is that it is balanced: as much is
    taken back as was saved, and something was. Where gradients have gradients, some is saved and never taken back; but
    an iteration that ends with a marker, as an optimizer's step is one, needs no such sign.

    Args:
        tokens: what happened.
        balance: for each token, +1 where something is saved, -1 where something is taken back, else 0.
        is_marked: whether the last token ends an iteration, or several.

    Returns:
        The number of tokens; None where there is none yet.
    """
    names: dict[Hashable, int] = {}
    values = np.array([names.setdefault(token, len(names)) for token in tokens], dtype=np.int64)
    total = np.concatenate([[0], np.cumsum(np.asarray(balance, dtype=np.int64))])
    saved = np.concatenate([[0], np.cumsum(np.asarray(balance, dtype=np.int64) > 0)])
    count = len(values)
    for period in range(1, count // 2 + 1):
        first = count - period
        if values[count - 1] != values[first - 1] or saved[count] == saved[first]:
            continue
        if not is_marked and total[count] != total[first]:
            continue
        if np.array_equal(values[first:], values[first - period : first]):
            return period
    return None
