"""A plan of which storages leave memory during an iteration, when, and when they are read back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from penstock.planning.fields import Fields, parse_object

VERSION = 2


@dataclass(frozen=True, slots=True)
class Swap:
    """One storage that is away once in an iteration. Segments beyond the last one are the next iteration's.

    Attributes:
        storage: which.
        nbytes: its size.
        leaves: it is written from the start of this segment on, after those before it.
        gone_by: it has to be written before this segment begins, which waits for it; if that is when it is read,
            nothing waits.
        reads_at: reading it begins at the start of this segment, and with that it is in memory again.
        returns: it is used again in this segment, which waits for it.
        recompute_seconds: what computing it again for that takes; None: it is written and read. What is computed again
            is gone at once, and is there again when it is used.
    """

    storage: int
    nbytes: int
    leaves: int
    gone_by: int
    reads_at: int
    returns: int
    recompute_seconds: float | None = None


@dataclass(frozen=True)
class SwapPlan:
    """What the runtime follows, and what is predicted of it.

    Attributes:
        swaps: in the order in which they are written.
        segments: how many an iteration has.
        method: what chose the swaps.
        limit_nbytes: what was asked for.
        peak_nbytes: the most that is in memory at one moment if writes end at once; until they do it may be more, up to
            the limit.
        full_peak_nbytes: the same with nothing away.
        compute_seconds: what an iteration takes with nothing away.
        predicted_seconds: what it takes with this plan.
        bound_seconds: no plan within the limit takes less, with these links.
        version: of this layout.
    """

    swaps: tuple[Swap, ...]
    segments: int
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
        return sum(swap.nbytes for swap in self.swaps if swap.recompute_seconds is None)

    @property
    def recomputed_nbytes(self) -> int:
        """Bytes computed again in each iteration."""
        return sum(swap.nbytes for swap in self.swaps) - self.swapped_nbytes

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
        found = parse_object(text, "swap plan")
        plan = cls(
            version=found.integer("version", VERSION, VERSION),
            swaps=found.items("swaps", _read_swap),
            segments=found.integer("segments", 1),
            method=found.text("method"),
            limit_nbytes=found.integer("limit_nbytes", 0),
            peak_nbytes=found.integer("peak_nbytes", 0),
            full_peak_nbytes=found.integer("full_peak_nbytes", 0),
            compute_seconds=found.seconds("compute_seconds"),
            predicted_seconds=found.seconds("predicted_seconds"),
            bound_seconds=found.seconds("bound_seconds"),
        )
        found.finish()
        return plan


def _read_swap(value: object, path: str) -> Swap:
    found = Fields(value, path)
    swap = Swap(
        storage=found.integer("storage", 0),
        nbytes=found.integer("nbytes", 1),
        leaves=found.integer("leaves", 0),
        gone_by=found.integer("gone_by", 0),
        reads_at=found.integer("reads_at", 0),
        returns=found.integer("returns", 0),
        recompute_seconds=found.optional("recompute_seconds", Fields.seconds),
    )
    found.finish()
    return swap
