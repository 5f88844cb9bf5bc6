"""One model of `benchmarks.training_plans`: its iteration recorded, and everything that is planned for it."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

import penstock
from benchmarks.pools import caching_footprint, cnmem_footprint
from benchmarks.serving import Verbs, serve
from benchmarks.training_models import Trained, find
from penstock.errors import BudgetInfeasibleError
from penstock.planning.placement_buffers import checked
from penstock.planning.placement_heuristics import smartpool
from penstock.planning.swap import METHODS, plan_swaps
from penstock.planning.swap_plan import SwapPlan
from penstock.planning.swap_problem import SwapProblem
from penstock.planning.swap_schedule import gone_in_time
from penstock.training.autoswap import when_planned
from penstock.training.lifetimes import Lifetimes, plan_pool
from penstock.training.placing import plan_places
from penstock.training.planner import Planner
from penstock.training.pool import PAGE_NBYTES

SAVINGS = (0.1, 0.2, 0.305, 0.342, 0.382, 0.42, 0.46, 0.5, 0.568, 0.6)
"""Parts of the peak load by which a limit is below it; some are the paper's."""

TIMED_SAVING = 0.3
_STEPS = 12
_ONE_SEGMENT_NBYTES = 1 << 40


def record(trained: Trained) -> Planner:
    """What is known of an iteration, before anything leaves."""
    torch.manual_seed(0)
    model, chance = trained.make().train(), torch.Generator().manual_seed(1)
    optimizer = trained.optimizer(model.parameters())
    planners: list[Planner] = []
    forget = when_planned(planners.append)
    with penstock.autoswap(model, optimizer, budget="1TiB", parameters=True):
        for _ in range(_STEPS):
            x, labels = trained.batch(trained.rows, chance)
            optimizer.zero_grad()
            trained.loss(model, x, labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if planners:
                break
    forget()
    return planners[0]


def measure(trained: Trained, planner: Planner) -> dict[str, Any]:
    """All numbers of one model."""
    problem, lifetimes = planner.record().problem, planner.lifetimes
    if lifetimes is None:
        raise RuntimeError("no two iterations were alike to the allocator")
    least = problem.least_nbytes()
    limit = max(int(problem.peak_nbytes * (1 - TIMED_SAVING)), least)
    began = perf_counter()
    limited = replace(problem, limit_nbytes=limit)
    chosen = gone_in_time(limited, plan_swaps(limited))
    plan_places(lifetimes, chosen, planner.allocations, planner.iteration)
    seconds = perf_counter() - began
    footprints, load = _footprints(lifetimes)
    return {
        "model": trained.name,
        "title": trained.title,
        "rows": trained.rows,
        "peak_nbytes": problem.peak_nbytes,
        "least_nbytes": least,
        "compute_seconds": problem.compute_seconds,
        "out_bytes_per_second": problem.out.bytes_per_second,
        "back_bytes_per_second": problem.back.bytes_per_second,
        "planning_seconds": seconds,
        "load_nbytes": load,
        "footprints": footprints,
        "curve": [_at(problem, saving) for saving in SAVINGS],
    }


def _footprints(lifetimes: Lifetimes) -> tuple[dict[str, int], int]:
    """Of each pool with nothing swapped, and the most bytes that live at one moment."""
    nothing = SwapPlan((), len(lifetimes.marks) - 1, "search", 0, 0, 0, 0.0, 0.0, 0.0)
    found = plan_pool(lifetimes, nothing, [], []).placement
    placed = lifetimes.upper > lifetimes.lower
    sizes = -(-lifetimes.nbytes[placed] // PAGE_NBYTES) * PAGE_NBYTES
    buffers = checked(lifetimes.lower[placed], lifetimes.upper[placed], sizes, lifetimes.period)
    return {
        "planned": found.height,
        "smartpool": int((smartpool(buffers) + buffers.size).max()),
        "cnmem": cnmem_footprint(lifetimes),
        "cnmem_one_segment": cnmem_footprint(lifetimes, first_nbytes=_ONE_SEGMENT_NBYTES),
        "caching": caching_footprint(lifetimes),
    }, found.load


def _at(problem: SwapProblem, saving: float) -> dict[str, Any]:
    """What each way to choose costs at one limit, in parts of an iteration."""
    limited = replace(problem, limit_nbytes=int(problem.peak_nbytes * (1 - saving)))
    try:
        plans = {name: plan_swaps(limited, scores=name) for name in METHODS}
    except BudgetInfeasibleError:
        return {"saving": saving, "overheads": None}
    bound = plans["best"].bound_seconds / problem.compute_seconds - 1
    overheads = {name: plan.overhead for name, plan in plans.items()}
    return {"saving": saving, "overheads": overheads, "bound": bound, "swapped_nbytes": plans["best"].swapped_nbytes}


def _begin(start: dict[str, Any]) -> Verbs:
    torch.set_num_threads(2)
    trained = find(start["model"])
    planner = record(trained)
    return {"measure": lambda: measure(trained, planner)}


if __name__ == "__main__":
    serve(_begin)
