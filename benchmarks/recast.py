"""A planning problem once more, with storage and computing as fast as they were measured to be at another moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.planning import Problem


def recast(
    problem: Problem,
    bytes_per_second: float,
    *,
    compute_seconds: float | None = None,
    call_seconds: Sequence[float] | None = None,
) -> Problem:
    """The same problem, but for times.

    Args:
        bytes_per_second: of the storage.
        compute_seconds: of a whole pass: every call takes its share of it that it took of the problem's.
        call_seconds: of each call.

    Raises:
        ValueError: `call_seconds` are not of this problem's calls.
    """
    if call_seconds is None:
        scale = compute_seconds / problem.compute_seconds if compute_seconds and problem.compute_seconds else 1.0
        call_seconds = [scale * call.seconds for call in problem.calls]
    if len(call_seconds) != len(problem.calls):
        raise ValueError(f"{len(call_seconds)} times for {len(problem.calls)} calls: profile and plan differ")
    calls = tuple(replace(call, seconds=seconds) for call, seconds in zip(problem.calls, call_seconds, strict=True))
    return replace(problem, calls=calls, storage=replace(problem.storage, bytes_per_second=bytes_per_second))
