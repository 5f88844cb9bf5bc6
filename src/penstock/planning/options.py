"""What is asked of a plan besides a strategy."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from penstock.errors import PlanError


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan is to be best at, and what the solver of a strategy is told. By default: least delay.

    Attributes:
        max_overhead: the least memory in which a warm pass is predicted to take at most `1 + max_overhead` times its
            compute: 0.01 for one percent.
        least_memory: the least memory at all.
        exact: no layer is computed in slices, so that every bit is the resident model's.
        lam: FlashMem's lambda, 0 to 1, what a preloaded weight costs against moving weights in every pass.
        peak_nbytes: FlashMem's M_peak, bytes of weights in memory at once.
        time_limit_seconds: for FlashMem's solver, for each plan that it makes: with `max_overhead`, up to a dozen.

    Raises:
        PlanError: an option is out of range, or two contradict one another.
    """

    max_overhead: float | None = None
    least_memory: bool = False
    exact: bool = False
    lam: float | None = None
    peak_nbytes: int | None = None
    time_limit_seconds: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_flag = field.name in ("least_memory", "exact")
            if value is not None and (isinstance(value, bool) != is_flag or not _is_number(value)):
                raise PlanError(f"{field.name} is {value!r}: give {'true or false' if is_flag else 'a number'}")
        if self.max_overhead is not None and self.least_memory:
            raise PlanError("max_overhead and least_memory contradict one another: give one of them")
        if self.max_overhead is not None and self.max_overhead < 0:
            raise PlanError(f"max_overhead is {self.max_overhead}: give zero or more, 0.01 for one percent")
        if self.lam is not None and not 0 <= self.lam <= 1:
            raise PlanError(f"lam is {self.lam}: give a share from 0 to 1")
        if self.peak_nbytes is not None and (self.peak_nbytes < 1 or not isinstance(self.peak_nbytes, int)):
            raise PlanError(f"peak_nbytes is {self.peak_nbytes}: give a number of bytes")
        if self.time_limit_seconds is not None and self.time_limit_seconds <= 0:
            raise PlanError(f"time_limit_seconds is {self.time_limit_seconds}: give some time")

    @property
    def of_solver(self) -> tuple[str, ...]:
        """The names of those that are given and that only a strategy with a solver takes."""
        return tuple(name for name in ("lam", "peak_nbytes", "time_limit_seconds") if getattr(self, name) is not None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
