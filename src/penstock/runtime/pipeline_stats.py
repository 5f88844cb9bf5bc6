"""What a pipeline counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PipelineStats:
    """Counters since the pipeline was opened."""

    bytes_read: int = 0
    stall_seconds: float = 0.0
    demand_loads: int = 0

    def __iadd__(self, other: PipelineStats) -> PipelineStats:
        self.bytes_read += other.bytes_read
        self.stall_seconds += other.stall_seconds
        self.demand_loads += other.demand_loads
        return self
