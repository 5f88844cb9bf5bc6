"""What a strategy is, and which there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from penstock.errors import PlanError
from penstock.planning.options import PlanOptions
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem
from penstock.planning.strategies.demand_layering import Asynchronous, Preload, Sequential, Synchronous, TwoStage
from penstock.planning.strategies.flashmem import FlashMem
from penstock.planning.strategies.optimal import Optimal
from penstock.planning.strategies.swapnet import SwapNet


class Strategy(Protocol):
    """A way of making plans. A strategy may assume that the budget is feasible; what it makes is checked."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    def needed_nbytes(self, problem: Problem) -> int:
        """The smallest budget for which `plan` has a plan, in bytes. The problem's own budget does not matter."""
        ...

    def plan(self, problem: Problem) -> Plan:
        """A plan for a problem whose budget is at least `needed_nbytes(problem)`."""
        ...


_STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Optimal(),
        Sequential(),
        Synchronous(),
        Asynchronous(),
        TwoStage(),
        Preload(),
        SwapNet(),
        FlashMem(),
    )
}
_AUTO = "optimal"


def get(name: str) -> Strategy:
    """The strategy called `name`; `"auto"` is the one that suits most.

    Raises:
        PlanError: there is none of that name.
    """
    strategy = _STRATEGIES.get(_AUTO if name == "auto" else name)
    if strategy is None:
        raise PlanError(f"there is no strategy {name!r}: choose one of {', '.join(['auto', *_STRATEGIES])}")
    return strategy


def configured(name: str, options: PlanOptions) -> Strategy:
    """The strategy called `name`, told what `options` say.

    Raises:
        PlanError: there is none of that name, or it has no use for an option that is given.
    """
    strategy = get(name)
    if isinstance(strategy, Optimal):  # the others slice nothing
        strategy = replace(strategy, exact=options.exact)
    if not options.of_solver:
        return strategy
    if not isinstance(strategy, FlashMem):
        given = ", ".join(options.of_solver)
        raise PlanError(f"{given}: only strategy 'flashmem' takes that, not {name!r}; leave it out")
    return strategy.told(options)


def names() -> tuple[str, ...]:
    """Every strategy's name, without the alias `"auto"`."""
    return tuple(_STRATEGIES)
