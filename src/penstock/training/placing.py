"""Where what comes back lies: in the pool's arena, or, without a pool, in one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from penstock.planning.placement import place
from penstock.planning.swap_plan import SwapPlan
from penstock.runtime.devices.cpu_queue import HUGE_PAGE_NBYTES, CpuArena
from penstock.training.iteration import Iteration
from penstock.training.lifetimes import Lifetimes, PoolPlan, plan_pool
from penstock.training.mover import Place, PoolPlace
from penstock.training.pool import Pool
from penstock.training.swapfile import room_nbytes


def own_places(plan: SwapPlan, iteration: Iteration) -> list[Place]:
    """Memory for what comes back, in whole huge pages, which go back to the system between two uses."""
    if not plan.swaps:
        return []
    sizes = np.array([-(-room_nbytes(swap.nbytes) // HUGE_PAGE_NBYTES) for swap in plan.swaps])
    stays = [_stays_until(plan, index, iteration) for index in range(len(plan.swaps))]
    lower = np.array([swap.reads_at for swap in plan.swaps]) % plan.segments
    upper = lower + [max(end - swap.reads_at, 1) for swap, end in zip(plan.swaps, stays, strict=True)]
    found = place(lower, upper, sizes, seconds=1.0, period=plan.segments, solver=False)
    arena, taken = CpuArena(found.height * HUGE_PAGE_NBYTES), bytearray(found.height)
    return [
        Place(arena, int(offset) * HUGE_PAGE_NBYTES, int(size) * HUGE_PAGE_NBYTES, taken)
        for offset, size in zip(found.offsets, sizes, strict=True)
    ]


def _stays_until(plan: SwapPlan, index: int, iteration: Iteration) -> int:
    """The segment at whose start nothing has what this swap brought back any more, or it is gone again."""
    swap, count = plan.swaps[index], plan.segments
    others = [other for other in plan.swaps if other.storage == swap.storage]
    later = [other.gone_by for other in others if other.leaves >= swap.returns]
    if swap.storage in iteration.until:
        return min([*later, iteration.until[swap.storage]])
    return min([*later, *(other.gone_by + count for other in others if other.leaves < swap.returns)])


def pool_places(pool: Pool, found: PoolPlan, plan: SwapPlan) -> list[Place]:
    """Places in the pool's arena, which from now on has one for each allocation of an iteration."""
    arena = pool.follow(found.placement.height, found.nbytes, found.offsets)
    pairs = zip(found.returns, plan.swaps, strict=True)
    return [PoolPlace(pool, arena, offset, room_nbytes(swap.nbytes)) for offset, swap in pairs]


@dataclass(frozen=True, eq=False)
class Placed:
    """A plan, and where everything lies by it.

    Attributes:
        outside_nbytes: of storages that have no place in the arena.
    """

    plan: SwapPlan
    places: PoolPlan
    outside_nbytes: int

    @property
    def total_nbytes(self) -> int:
        """What an iteration takes for its storages."""
        return self.places.placement.height + self.outside_nbytes

    @property
    def gap_nbytes(self) -> int:
        """How much of that is between storages, which nothing else can use."""
        return self.total_nbytes - self.plan.peak_nbytes


def plan_places(lifetimes: Lifetimes, plan: SwapPlan, allocations: Mapping[int, int], iteration: Iteration) -> Placed:
    """Addresses for all blocks of an iteration, and for what comes back."""
    first, count = lifetimes.first_ordinal, len(lifetimes.nbytes)
    found_at = [allocations.get(swap.storage, -1) - first for swap in plan.swaps]
    dies = lifetimes.upper > lifetimes.lower
    blocks = [block if 0 <= block < count and dies[block] else None for block in found_at]
    stays = [_stays_until(plan, index, iteration) for index in range(len(plan.swaps))]
    come_back = {swap.storage: swap.nbytes for swap, block in zip(plan.swaps, blocks, strict=True) if block is None}
    outside_nbytes = iteration.lasting_nbytes + lifetimes.again_nbytes - sum(come_back.values())
    return Placed(plan, plan_pool(lifetimes, plan, blocks, stays), outside_nbytes)
