"""AutoSwap's four scores combined: the weights for which an iteration is shortest, by Bayesian optimisation.

The paper (Zhang et al., arXiv 1903.06631, section on combining scores) has the weights found by it for a limit; what is
tried next here comes from Optuna's tree-structured Parzen estimator.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType

from penstock.errors import PlanError
from penstock.planning.swap_problem import Absence, SwapProblem
from penstock.planning.swap_scores import SCORES, normalised, order_by

TRIALS = 60
"""So many combinations are tried at most; the first four are single scores."""


def by_best_weights(
    problem: SwapProblem, seconds_with: Callable[[tuple[Absence, ...]], float], deadline: float
) -> tuple[Absence, ...]:
    """Absences in the order of the best weighted sum that is found.

    Args:
        problem: what is to be decided.
        seconds_with: of an order, the seconds of an iteration that it leads to.
        deadline: on the monotonic clock.

    Raises:
        PlanError: Optuna is not installed.
    """
    optuna = _import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, multivariate=True))
    names = tuple(SCORES)
    for alone in names:
        study.enqueue_trial({name: float(name == alone) for name in names})
    scores = normalised(problem)
    tried: dict[tuple[Absence, ...], float] = {}
    for _ in range(TRIALS):
        trial = study.ask()
        order = order_by(problem, [trial.suggest_float(name, 0.0, 1.0) for name in names], scores)
        if order not in tried:
            tried[order] = seconds_with(order)
        study.tell(trial, tried[order])
        if time.monotonic() > deadline:
            break
    return min(tried, key=lambda order: tried[order])


def _import_optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise PlanError(f"optuna cannot be imported ({error}): pip install 'penstock[weights]'") from error
    found: ModuleType = optuna
    return found
