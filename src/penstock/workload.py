"""What a kind of call asks of any budget: the problems that it poses, without streaming anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from penstock.admission import assumed_trace
from penstock.capacity import capacity_for
from penstock.checkpoint import Checkpoint
from penstock.machine import StorageProfile, storage_profile
from penstock.planning import Plan, PlanOptions, Problem
from penstock.planning.strategies import get as get_strategy
from penstock.profile import make_problem
from penstock.report.curve import Curve
from penstock.report.sweeping import find_budgets, sweep
from penstock.runtime.binding import BoundWeight, to_realign
from penstock.signature import Signature
from penstock.trace import Trace
from penstock.tracestore import TraceStore, kept_plan


@dataclass(frozen=True)
class Workload:
    """One kind of call of one model on this machine, whatever budget it will have.

    Attributes:
        trace: of such a call.
        activations_nbytes: what it needs for its own tensors; 0 where nothing tells.
        fixed_nbytes: buffers and parameters that are in memory anyway.
        moved: weights that are moved to an aligned address once they have arrived.
        place: a file of the checkpoint.
    """

    trace: Trace
    weights: Sequence[BoundWeight]
    storage: StorageProfile
    activations_nbytes: int
    fixed_nbytes: int
    moved: frozenset[int]
    place: Path

    def problem(self, budget_nbytes: int, strategy: str = "auto") -> Problem:
        """What running it within the budget poses, with what `strategy` wants to know."""
        return make_problem(
            self.trace,
            self.weights,
            self.storage,
            budget_nbytes=budget_nbytes,
            activations_nbytes=self.activations_nbytes,
            fixed_nbytes=self.fixed_nbytes,
            overhead_nbytes=self.trace.overhead_nbytes,
            moved=self.moved,
            capacity=capacity_for(strategy, self.place),
        )

    def plan(self, budget_nbytes: int, strategy: str, options: PlanOptions) -> Plan:
        """The plan for it.

        Raises:
            BudgetInfeasibleError: there is none.
            PlanError: there is none as `options` want it.
        """
        return kept_plan(self.problem(budget_nbytes, strategy), strategy, options)

    def _kept_plan(self, problem: Problem, strategy: str) -> Plan:
        return self.plan(problem.budget_nbytes, strategy, PlanOptions())

    def budgets(self, strategies: Sequence[str] | None) -> list[int]:
        """The budgets in bytes that make sense for strategies: see `penstock.report.sweeping.find_budgets`."""
        return find_budgets(self.problem, _own_names(strategies), self._kept_plan)

    def sweep(
        self,
        model: str,
        budgets: Sequence[int] | None,
        strategies: Sequence[str] | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Curve:
        """What strategies predict at budgets: see `penstock.report.sweeping.sweep`."""
        return sweep(
            self.problem,
            model=model,
            is_timed=self.trace.is_timed,
            budgets=budgets,
            strategies=_own_names(strategies),
            make=self._kept_plan,
            progress=progress,
        )


def _own_names(strategies: Sequence[str] | None) -> list[str] | None:
    """Strategies by their own names, whatever alias was given."""
    return None if strategies is None else [get_strategy(name).name for name in strategies]


def find_workload(
    module: nn.Module,
    weights: Sequence[BoundWeight],
    checkpoint: Checkpoint,
    args: Any,
    kwargs: Any,
    *,
    dry: Callable[[Any, Any], Trace | None],
    fixed_nbytes: int,
) -> Workload:
    """The workload of calls with these arguments; nothing is loaded and nothing computed.

    Args:
        dry: traces such a call without computing it, None where it cannot be. Then layers are taken to run in the order
            of their registration, as `stream` does before it has seen a pass.
        fixed_nbytes: buffers and parameters that are in memory anyway.
    """
    signature = Signature.of(args, kwargs)
    store = TraceStore(module, weights, checkpoint.fingerprint)
    trace = store.get(signature)
    if trace is None and (trace := dry(args, kwargs)) is not None:
        store.put(signature, trace)
    needed_nbytes = trace.activations_nbytes if trace is not None else 0
    place = checkpoint.files[0].path
    trace = trace or assumed_trace(module, weights)
    moved = to_realign(weights, store.single_row() | trace.single_row)
    return Workload(trace, weights, storage_profile(place), needed_nbytes, fixed_nbytes, moved, place)
