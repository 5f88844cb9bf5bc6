"""What an iteration takes of this process's memory."""

from __future__ import annotations

from penstock.footprint import read_memory, reset_peak


class Meter:
    """Memory beyond what the process had before, at its peak.

    Args:
        live_nbytes: of storages that were there already, which count.
    """

    def __init__(self, live_nbytes: int) -> None:
        memory = read_memory()
        self._base_nbytes = memory.anonymous_nbytes - live_nbytes if memory is not None else 0
        self._is_reset = False

    def reset(self) -> None:
        """The peak is from now on."""
        self._is_reset = reset_peak()

    def taken_nbytes(self) -> int:
        """The most since the peak was reset; 0 if nobody knows."""
        memory = read_memory() if self._is_reset else None
        return memory.peak_nbytes - memory.file_nbytes - self._base_nbytes if memory is not None else 0
