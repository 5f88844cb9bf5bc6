"""Where what comes back lies: in the pool's arena, or, without a pool, in one of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from penstock.planning.placement import place
from penstock.planning.swap_plan import SwapPlan
from penstock.runtime.devices.cpu_queue import HUGE_PAGE_NBYTES, CpuArena
from penstock.training.iteration import Iteration
from penstock.training.lifetimes import Lifetimes, plan_pool
from penstock.training.mover import Place, PoolPlace
from penstock.training.pool import Pool
from penstock.training.swapfile import room_nbytes


def own_places(plan: SwapPlan, iteration: Iteration) -> list[Place]:
    """Memory for what comes back, in whole huge pages, which go back to the system between two uses."""
    if not plan.swaps:
        return []
    sizes = np.array([-(-room_nbytes(swap.nbytes) // HUGE_PAGE_NBYTES) for swap in plan.swaps])
    lower = np.array([swap.reads_at for swap in plan.swaps])
    # Optimizer state lives on into the next iteration.
    count = len(iteration.events)
    lower = np.where([swap.storage < count for swap in plan.swaps], lower, 0)
    upper = np.array([iteration.until.get(swap.storage, count) for swap in plan.swaps])
    found = place(lower, np.maximum(upper, lower + 1), sizes, seconds=1.0)
    arena, taken = CpuArena(found.height * HUGE_PAGE_NBYTES), bytearray(found.height)
    return [
        Place(arena, int(offset) * HUGE_PAGE_NBYTES, int(size) * HUGE_PAGE_NBYTES, taken)
        for offset, size in zip(found.offsets, sizes, strict=True)
    ]


def pool_places(
    pool: Pool, lifetimes: Lifetimes, plan: SwapPlan, allocations: Mapping[int, int], gone_by: Sequence[int]
) -> list[Place]:
    """Places in the pool's arena, which from now on has one for each allocation of an iteration."""
    first, count = lifetimes.first_ordinal, len(lifetimes.nbytes)
    found_at = [allocations.get(swap.storage, -1) - first for swap in plan.swaps]
    blocks = [block if 0 <= block < count else None for block in found_at]
    found = plan_pool(lifetimes, plan, blocks, gone_by)
    arena = pool.follow(found.placement.height, found.nbytes, found.offsets)
    pairs = zip(found.returns, plan.swaps, strict=True)
    return [PoolPlace(pool, arena, offset, room_nbytes(swap.nbytes)) for offset, swap in pairs]
