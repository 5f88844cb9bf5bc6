"""A plan of which storages leave memory during an iteration, when, and when they are read back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from penstock.errors import PlanError

VERSION = 1


@dataclass(frozen=True, slots=True)
class Swap:
    """One storage that is away once in an iteration.

    Attributes:
        storage: which.
        nbytes: its size.
        leaves: it is written from the start of this segment on, after those before it.
        reads_at: reading it begins at the start of this segment, and with that it is in memory again.
        returns: it is used again in this segment, which waits for it.
    """

    storage: int
    nbytes: int
    leaves: int
    reads_at: int
    returns: int


@dataclass(frozen=True)
class SwapPlan:
    """What the runtime follows, and what is predicted of it.

    Attributes:
        swaps: in the order in which they are written.
        gone: for each segment, so many of the first swaps have to be written before it begins.
        method: what chose the swaps.
        limit_nbytes: what was asked for.
        peak_nbytes: the most that is in memory at one moment, by this plan.
        full_peak_nbytes: the same with nothing away.
        compute_seconds: what an iteration takes with nothing away.
        predicted_seconds: what it takes with this plan.
        bound_seconds: no plan within the limit takes less, with these links.
        version: of this layout.
    """

    swaps: tuple[Swap, ...]
    gone: tuple[int, ...]
    method: str
    limit_nbytes: int
    peak_nbytes: int
    full_peak_nbytes: int
    compute_seconds: float
    predicted_seconds: float
    bound_seconds: float
    version: int = VERSION

    @property
    def swapped_nbytes(self) -> int:
        """Bytes written, and read again, in each iteration."""
        return sum(swap.nbytes for swap in self.swaps)

    @property
    def overhead(self) -> float:
        """By how much longer an iteration is predicted to take: 0.01 is a hundredth."""
        return self.predicted_seconds / self.compute_seconds - 1 if self.compute_seconds else 0.0

    def to_json(self) -> str:
        """This plan as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SwapPlan:
        """The plan that `to_json` wrote. Whether it is right for an iteration, `check_swaps` tells.

        Raises:
            PlanError: the text is no such plan.
        """
        try:
            found = json.loads(text)
            if not isinstance(found, dict) or found.get("version") != VERSION:
                raise PlanError(f"not a swap plan of version {VERSION}: record and plan anew")
            values = {field.name: found.pop(field.name) for field in fields(cls)}
            if found:
                raise PlanError(f"a swap plan has no {sorted(found)[0]!r}: record and plan anew")
            values["swaps"] = tuple(Swap(**_integers(swap)) for swap in values["swaps"])
            values["gone"] = tuple(_integers({"gone": count})["gone"] for count in values["gone"])
            for name in ("limit_nbytes", "peak_nbytes", "full_peak_nbytes"):
                _integers({name: values[name]})
            for name in ("compute_seconds", "predicted_seconds", "bound_seconds"):
                values[name] = float(values[name])
            return cls(**{**values, "method": str(values["method"])})
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"not a swap plan ({error!r}): record and plan anew") from error


def _integers(values: dict[str, Any]) -> dict[str, int]:
    for name, value in values.items():
        if type(value) is not int:
            raise PlanError(f"{name} of a swap plan is {value!r}, which is no integer: record and plan anew")
    return values
