"""A swap plan in words."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.budget import format_size
from penstock.planning.swap_plan import SwapPlan


def explain_swaps(plan: SwapPlan, overhead_nbytes: int, kinds: Mapping[str, int]) -> str:
    """What leaves memory, what an iteration takes of it then, and how long it takes, for people.

    Args:
        plan: what is followed.
        overhead_nbytes: what an iteration takes beside its storages.
        kinds: bytes of what lives when the most does and nothing is away, by what it is for.
    """
    moved = [swap for swap in plan.swaps if swap.recompute_seconds is None]
    leave = f"{len(moved)} storages of together {format_size(plan.swapped_nbytes)} leave memory"
    if len(moved) < len(plan.swaps):
        again = len(plan.swaps) - len(moved)
        leave += f", and {again} of {format_size(plan.recomputed_nbytes)} are computed again,"
    peak = f"{format_size(plan.full_peak_nbytes)}, with them away {format_size(plan.peak_nbytes)}"
    seconds = f"{plan.compute_seconds:.3f} s, predicted {plan.predicted_seconds:.3f} s ({plan.overhead:+.1%})"
    lives = ", ".join(f"{kind} {format_size(nbytes)}" for kind, nbytes in kinds.items())
    return "\n".join(
        [
            f"{leave} in each iteration, chosen by {plan.method}",
            f"  peak            {peak}, and {format_size(overhead_nbytes)} beside storages",
            f"  at its moment   {lives}",
            f"  an iteration    {seconds}; no plan takes less than {plan.bound_seconds:.3f} s",
        ]
    )
