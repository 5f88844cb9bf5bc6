"""SwapNet's strategy: blocks of layers, swapped in whole while the block before executes.

Wang et al., "SwapNet: Efficient Swapping for DNN Inference on Edge AI Devices Beyond the Memory Budget", IEEE TMC 2024
(arXiv 2401.16757). See `blocks` for the delay model and the cuts. The paper's reserve, a share d of the budget, is
explicit in a problem, so that here d = 0 of what it leaves. Its swap-in without copies is what the runtime does anyway.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from penstock.planning.lifetimes import Use, streamable_uses
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem
from penstock.planning.strategies.blocks import Partition, Unit, cut_blocks, list_units
from penstock.planning.strategies.layout import assemble, lay_out_alternating, lay_out_least
from penstock.planning.strategies.whole import capacity_nbytes, extents_nbytes, keep_tiny, list_tables

_SIMULATED = 12  # numbers of blocks whose plans are made, those with the least exposed delay


class SwapNet:
    """The strategy `"swapnet"`.

    A weight of a call around others is held while those run, and the paper's cuts do not go through it. Where the
    budget does not suffice for that, such weights stay resident, and what is within is cut.
    """

    name = "swapnet"

    def needed_nbytes(self, problem: Problem) -> int:
        """See `registry.Strategy`."""
        return max(1, problem.reserve.total_nbytes + _least_nbytes(problem, streamable_uses(problem)))

    def plan(self, problem: Problem) -> Plan:
        """See `registry.Strategy`."""
        uses, rows = streamable_uses(problem), list_tables(problem)
        whole = {use.weight for use in uses}
        if extents_nbytes(problem, whole) <= capacity_nbytes(problem):
            return assemble(problem, self.name, whole, rows, lay_out_least([], [], len(problem.calls)))
        kept = keep_tiny(problem, uses, lambda rest: _least_nbytes(problem, rest))
        rest = [use for use in uses if use.weight not in kept]
        limit_nbytes = capacity_nbytes(problem) - extents_nbytes(problem, kept)
        around = _around(rest)
        if _least_cut_nbytes(problem, rest) > limit_nbytes:
            kept |= around
            limit_nbytes -= extents_nbytes(problem, around)
            rest = [use for use in rest if use.weight not in around]
        return self._plan(problem, kept, rest, limit_nbytes)

    def _plan(self, problem: Problem, kept: frozenset[int], uses: Sequence[Use], limit_nbytes: int) -> Plan:
        """The best plan whose blocks, of `uses`, take `limit_nbytes` two by two; the table of cuts goes with it."""
        units = list_units(problem, uses)
        partition = Partition(problem, units, list_tables(problem), limit_nbytes)
        table = partition.tabulate() or [(0.0, partition.any_cuts() or [])]
        plans = [
            self._assemble(problem, kept, cut_blocks(units, cuts))
            for _, cuts in sorted(table, key=lambda row: row[0])[:_SIMULATED]
        ]
        best = min(plans, key=lambda plan: plan.prediction.warm_seconds)
        described = [
            {"blocks": len(cuts) + 1, "exposed_seconds": seconds, "first_calls": [units[cut].first for cut in cuts]}
            for seconds, cuts in table
        ]
        blocks = len({load.first_call for load in best.loads})
        details = (("blocks", str(blocks)), ("cuts", json.dumps(described)))
        return replace(best, details=details)

    def _assemble(self, problem: Problem, kept: frozenset[int], blocks: Sequence[Unit]) -> Plan:
        uses = [Use(weight, block.first, block.last) for block in blocks for weight in block.weights]
        extents = [problem.extent_nbytes(use.weight) for use in uses]
        sizes = [extents_nbytes(problem, block.weights) for block in blocks]
        region_nbytes = max(map(sum, pairwise(sizes)), default=sum(sizes))
        layout = lay_out_alternating(uses, extents, region_nbytes, len(problem.calls))
        return assemble(problem, self.name, kept, list_tables(problem), layout)


def _least_nbytes(problem: Problem, uses: Sequence[Use]) -> int:
    """The least in which `uses` can be had: all of them, two blocks, or two and what is around them."""
    around = _around(uses)
    inner = [use for use in uses if use.weight not in around]
    return min(
        extents_nbytes(problem, {use.weight for use in uses}),
        _least_cut_nbytes(problem, uses),
        extents_nbytes(problem, around) + _least_cut_nbytes(problem, inner),
    )


def _least_cut_nbytes(problem: Problem, uses: Sequence[Use]) -> int:
    """The least that holds any two successive blocks, cut as well as can be."""
    units = list_units(problem, uses)
    sizes = [extents_nbytes(problem, unit.weights) for unit in units]
    finest_nbytes = max(map(sum, pairwise(sizes)), default=sum(sizes))
    if len({weight for unit in units for weight in unit.weights}) == sum(len(unit.weights) for unit in units):
        return finest_nbytes
    low, high = max(sizes), finest_nbytes  # blocks with weights in common take less together
    while low < high:
        middle = (low + high) // 2
        if Partition(problem, units, (), middle).any_cuts() is None:
            low = middle + 1
        else:
            high = middle
    return low


def _around(uses: Sequence[Use]) -> frozenset[int]:
    """Weights of which a stay goes on while others begin."""
    firsts = [use.first for use in uses]
    return frozenset(use.weight for use in uses if bisect_right(firsts, use.last) > bisect_right(firsts, use.first))
