"""What a stream counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What a stream did since it was made.

    Attributes:
        passes: passes run.
        bytes_read: from storage, rows of tables included.
        stall_seconds: for which layers waited for their weights.
        demand_loads: loads that the plan did not foresee, and weights that had to be mapped.
        peak_nbytes: most bytes that the budget was used for: arena, I/O buffers, bookkeeping, activations as traced.
        pass_stall_seconds: the part of `stall_seconds` in the last pass.
    """

    passes: int
    bytes_read: int
    stall_seconds: float
    demand_loads: int
    peak_nbytes: int
    pass_stall_seconds: float
