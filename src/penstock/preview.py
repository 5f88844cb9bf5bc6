"""The plan that a stream would follow, without following it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from penstock.admission import assumed_trace
from penstock.capacity import capacity_for
from penstock.checkpoint import Checkpoint
from penstock.machine import storage_profile
from penstock.planning import Plan
from penstock.profile import make_problem
from penstock.runtime.binding import BoundWeight, to_realign
from penstock.signature import Signature
from penstock.terms import Terms
from penstock.trace import Trace
from penstock.tracestore import TraceStore, kept_plan


def preview(
    module: nn.Module,
    weights: Sequence[BoundWeight],
    checkpoint: Checkpoint,
    args: Any,
    kwargs: Any,
    *,
    dry: Callable[[Any, Any], Trace | None],
    terms: Terms,
    fixed_nbytes: int,
) -> Plan:
    """The plan for calls with these arguments; nothing is loaded and nothing computed.

    Args:
        dry: traces such a call without computing it, None where it cannot be. Then layers are taken to run in the order
            of their registration, as `stream` does before it has seen a pass.
        fixed_nbytes: buffers and parameters that are in memory anyway.

    Raises:
        BudgetInfeasibleError: no plan fits.
    """
    signature = Signature.of(args, kwargs)
    store = TraceStore(module, weights, checkpoint.fingerprint)
    trace = store.get(signature)
    if trace is None and (trace := dry(args, kwargs)) is not None:
        store.put(signature, trace)
    needed_nbytes = trace.activations_nbytes if trace is not None else 0
    trace = trace or assumed_trace(module, weights)
    problem = make_problem(
        trace,
        weights,
        storage_profile(checkpoint.files[0].path),
        budget_nbytes=terms.budget.nbytes,
        activations_nbytes=needed_nbytes,
        fixed_nbytes=fixed_nbytes,
        moved=to_realign(weights, store.single_row() | trace.single_row),
        overhead_nbytes=trace.overhead_nbytes,
        capacity=capacity_for(terms.strategy, checkpoint.files[0].path),
    )
    return kept_plan(problem, terms.strategy)
