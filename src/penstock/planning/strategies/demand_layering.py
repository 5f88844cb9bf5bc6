"""The five architectures of Ji et al., "Demand Layering for Real-Time DNN Inference with Minimized Memory Usage", RTSS
2022 (arXiv 2210.04024): a network is loaded layer by layer while it computes, again in each pass.

A layer is one call's weights; M is what the largest takes, or where calls nest, what the calls that are open at one
moment take together. What the paper rebuilds for each inference goes on here into the next: the first layers of a pass
are loaded under the last calls of the one before it. All but `preload` stream every layer, however much memory there
is: the paper's remedy for more memory is a larger buffer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from penstock.planning.lifetimes import Use, largest_live_nbytes, streamable_uses
from penstock.planning.plan import EAGER, LOCKSTEP, PLANNED, PRELOAD, Load, Plan
from penstock.planning.problem import Problem
from penstock.planning.ring import place_alternating, place_earliest
from penstock.planning.strategies.layout import (
    Layout,
    assemble,
    finish,
    lay_out,
    lay_out_alternating,
    lay_out_least,
    list_loads,
)
from penstock.planning.strategies.whole import capacity_nbytes, extents_nbytes, keep_tiny, list_tables

_PARTS = 4  # sizes of p that are tried
_DIGITS = 9  # of seconds, beyond which a larger buffer is preferred: storage is not always as fast as was measured


class _Streaming(ABC):
    """An architecture that streams.

    Attributes:
        runs_ahead: as far as its buffers allow. Layers of different sizes do not always use a larger one better, so
            that a few smaller ones are tried too.
    """

    name: str
    runs_ahead = False

    def needed_nbytes(self, problem: Problem) -> int:
        """See `registry.Strategy`."""
        return max(1, problem.reserve.total_nbytes + self._least_nbytes(problem, streamable_uses(problem)))

    def plan(self, problem: Problem) -> Plan:
        """See `registry.Strategy`."""
        uses = streamable_uses(problem)
        kept = keep_tiny(problem, uses, lambda rest: self._least_nbytes(problem, rest))
        rest = [use for use in uses if use.weight not in kept]
        limit_nbytes = capacity_nbytes(problem) - extents_nbytes(problem, kept)
        least_nbytes = self._least_nbytes(problem, rest)
        spare_nbytes = (limit_nbytes - least_nbytes) * self.runs_ahead
        sizes = [limit_nbytes - spare_nbytes * part // _PARTS for part in range(_PARTS if spare_nbytes else 1)]
        plans = [self._plan(problem, kept, rest, nbytes) for nbytes in sizes]
        return min(plans, key=lambda plan: round(plan.prediction.warm_seconds, _DIGITS))

    @abstractmethod
    def _least_nbytes(self, problem: Problem, uses: Sequence[Use]) -> int:
        """The buffers with which `uses` can stream at all."""

    @abstractmethod
    def _plan(self, problem: Problem, kept: frozenset[int], uses: Sequence[Use], limit_nbytes: int) -> Plan:
        """The plan that streams `uses` in buffers of at most `limit_nbytes`."""


class Sequential(_Streaming):
    """`"sequential"`: read, copy, compute, one after another; buffers of 2M; a pass takes sum(r + c + k).

    A layer of several weights is read and copied weight by weight, so that staging holds the largest weight.
    """

    name = "sequential"

    def _least_nbytes(self, problem: Problem, uses: Sequence[Use]) -> int:
        return largest_live_nbytes(problem, uses) + max(_extents(problem, uses), default=0)

    def _plan(self, problem: Problem, kept: frozenset[int], uses: Sequence[Use], limit_nbytes: int) -> Plan:
        extents = _extents(problem, uses)
        layout = lay_out_least(uses, extents, len(problem.calls))
        loads = [
            replace(load, after_call=(use.first or len(problem.calls)) - 1, after_pass=0 if use.first else -1)
            for load, use in zip(list_loads(problem, layout), uses, strict=True)
        ]
        return _finish(self.name, problem, kept, layout, _staged(problem, loads, [0] * len(loads)), PLANNED)


class Synchronous(_Streaming):
    """`"synchronous"`: read, copy and compute in lockstep; a cycle takes the longest: sum of max(r[t], c[t-1], k[t-2]).

    Two places of M in staging and two in the arena, which layers take by turns. Where their number is odd, the last
    layer and the first of the next pass have the same, and one waits for the other.
    """

    name = "synchronous"

    def _least_nbytes(self, problem: Problem, uses: Sequence[Use]) -> int:
        return 2 * (largest_live_nbytes(problem, uses) + _largest_layer_nbytes(problem, uses))

    def _plan(self, problem: Problem, kept: frozenset[int], uses: Sequence[Use], limit_nbytes: int) -> Plan:
        extents = _extents(problem, uses)
        layout = lay_out_alternating(uses, extents, 2 * largest_live_nbytes(problem, uses), len(problem.calls))
        layers = [Use(use.weight, use.first, use.first) for use in uses]
        starts = place_alternating(layers, extents, 2 * _largest_layer_nbytes(problem, uses))
        loads = _staged(problem, list_loads(problem, layout), starts)
        return _finish(self.name, problem, kept, layout, loads, LOCKSTEP)


class Asynchronous(_Streaming):
    """`"asynchronous"`: each stage runs ahead as far as its circular buffer of M + p allows."""

    name = "asynchronous"
    runs_ahead = True

    def _least_nbytes(self, problem: Problem, uses: Sequence[Use]) -> int:
        return largest_live_nbytes(problem, uses) + max(_extents(problem, uses), default=0)

    def _plan(self, problem: Problem, kept: frozenset[int], uses: Sequence[Use], limit_nbytes: int) -> Plan:
        extents, block = _extents(problem, uses), problem.storage.block_nbytes
        extra_nbytes = (limit_nbytes - self._least_nbytes(problem, uses)) // 2
        extra_nbytes -= extra_nbytes % block
        layout = _lay_out(problem, uses, largest_live_nbytes(problem, uses) + extra_nbytes)
        reads = [Use(use.weight, index, index) for index, use in enumerate(uses)]
        staging_nbytes = min(max(extents, default=0) + extra_nbytes, sum(extents))
        starts = place_earliest(reads, extents, staging_nbytes, len(reads)) or []
        return _finish(self.name, problem, kept, layout, _staged(problem, list_loads(problem, layout), starts))


class TwoStage(_Streaming):
    """`"two-stage"`: read straight to where the layer computes, into a circular buffer of M + p; nothing is copied."""

    name = "two-stage"
    runs_ahead = True

    def _least_nbytes(self, problem: Problem, uses: Sequence[Use]) -> int:
        return largest_live_nbytes(problem, uses)

    def _plan(self, problem: Problem, kept: frozenset[int], uses: Sequence[Use], limit_nbytes: int) -> Plan:
        return assemble(problem, self.name, kept, list_tables(problem), _lay_out(problem, uses, limit_nbytes))


class Preload:
    """`"preload"`: everything is loaded before the first call, and stays; tables too, where there is room."""

    name = "preload"

    def needed_nbytes(self, problem: Problem) -> int:
        """See `registry.Strategy`."""
        whole = {use.weight for use in streamable_uses(problem)}
        return max(1, problem.reserve.total_nbytes + extents_nbytes(problem, whole))

    def plan(self, problem: Problem) -> Plan:
        """See `registry.Strategy`."""
        kept = {use.weight for use in streamable_uses(problem)}
        tables = sorted(list_tables(problem), key=lambda table: (-problem.weights[table].row_seconds, table))
        for table in tables:
            if extents_nbytes(problem, {*kept, table}) <= capacity_nbytes(problem):
                kept.add(table)
        rows = [table for table in sorted(tables) if table not in kept]
        return finish(problem, self.name, kept, rows, [], 0, pacing=PRELOAD)


def _extents(problem: Problem, uses: Sequence[Use]) -> list[int]:
    return [problem.extent_nbytes(use.weight) for use in uses]


def _largest_layer_nbytes(problem: Problem, uses: Sequence[Use]) -> int:
    """The most bytes that are loaded for one call."""
    layers: dict[int, int] = {}
    for use in uses:
        layers[use.first] = layers.get(use.first, 0) + problem.extent_nbytes(use.weight)
    return max(layers.values(), default=0)


def _lay_out(problem: Problem, uses: Sequence[Use], region_nbytes: int) -> Layout:
    """A circular buffer; where calls with several weights leave gaps in it that are too small, the least one.

    Beyond what holds every layer at once, more is of no use.
    """
    extents = _extents(problem, uses)
    layout = lay_out(uses, extents, min(region_nbytes, sum(extents)), len(problem.calls))
    return layout or lay_out_least(uses, extents, len(problem.calls))


def _staged(problem: Problem, loads: Sequence[Load], starts: Sequence[int]) -> list[Load]:
    """`loads` by way of staging memory."""
    return [
        replace(load, staging_offset=start + problem.weights[load.weight].offset_in_block)
        for load, start in zip(loads, starts, strict=True)
    ]


def _finish(
    name: str, problem: Problem, kept: frozenset[int], layout: Layout, loads: Sequence[Load], pacing: str = EAGER
) -> Plan:
    ends = [
        load.staging_offset - problem.weights[load.weight].offset_in_block + problem.extent_nbytes(load.weight)
        for load in loads
    ]
    return finish(
        problem,
        name,
        kept,
        list_tables(problem),
        loads,
        layout.region_nbytes,
        pacing=pacing,
        staging_nbytes=max(ends, default=0),
    )
