"""What a curve says in words: what it rests on, the least budget, where more memory stops to pay."""

from __future__ import annotations

from penstock.report.curve import INFERENCE, TRAINING, Curve
from penstock.report.sizes import readable_nbytes, size_text, time_text

GOOD_OVERHEAD = 0.05
"""Over a pass that never waits: what the words call close."""


def facts_of(curve: Curve) -> str:
    """What the numbers rest on, as a line of text."""
    compute = f"{'a' if curve.task == INFERENCE else 'an'} {curve.timed} computes {time_text(curve.compute_seconds)}"
    if not curve.is_timed:
        compute += " (estimated)"
    rate = f"storage {curve.bytes_per_second / 1e9:.2f} GB/s"
    whole = f"{size_text(curve.full_nbytes)} of weights"
    if curve.task == TRAINING:
        whole = f"all stays within {size_text(curve.full_nbytes)}"
    return f"{whole} · {compute} · {rate}"


def words_of(curve: Curve) -> list[str]:
    """Lines to read below a table or picture."""
    lines = [f"{facts_of(curve)}."]
    if not curve.is_timed:
        lines.append(
            "Layers were never timed here, so these are estimates until such calls have run (--measure runs some)."
        )
    planned = [point for point in curve.points if point.predicted_seconds is not None]
    if planned:
        lines.append(f"Least budget: {size_text(planned[0].budget_nbytes)}, with {planned[0].strategy}.")
    good = curve.smallest_within(GOOD_OVERHEAD)
    if good is not None:
        lines.append(
            f"Within {GOOD_OVERHEAD:.0%} of one that never waits: from {size_text(good.budget_nbytes)}, "
            f"with {good.strategy}."
        )
    needs = [f"{strategy} from {size_text(readable_nbytes(nbytes))}" for strategy, nbytes in curve.needs().items()]
    if needs:
        lines.append(f"Not every strategy has a plan for each budget: {', '.join(needs)}.")
    return [*lines, *curve.remarks]
