"""What loads cost storage and the thread that computes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from penstock.planning.plan import PLANNED, Ebb, Load, Plan
from penstock.planning.problem import Problem
from penstock.planning.regain import regained_nbytes
from penstock.planning.slicing import as_planned


def part_seconds(problem: Problem, load: Load) -> float:
    """How long the storage needs for `load`, which may bring a part of its weight only."""
    weight, storage = problem.weights[load.weight], problem.storage
    if load.nbytes == weight.nbytes:
        return problem.load_seconds(load.weight)
    requests = -(-weight.requests * load.nbytes // weight.nbytes)
    return requests * storage.request_seconds + extent_nbytes(problem, load) / storage.bytes_per_second


def extent_nbytes(problem: Problem, load: Load) -> int:
    """The whole blocks that `load` reads, and fills in the arena."""
    block = problem.storage.block_nbytes
    begin = problem.weights[load.weight].offset_in_block + load.first_byte
    return -(-(begin + load.nbytes) // block) * block - begin // block * block


def lost_seconds(problem: Problem, plan: Plan) -> float:
    """What a warm pass of `plan` computes beyond `problem`'s calls: for loads, and for slices."""
    divided = as_planned(problem, plan.joins, plan.cuts)
    lost = math.fsum(losses(divided, plan, [part_seconds(divided, load) for load in plan.loads]))
    return divided.compute_seconds - problem.compute_seconds + lost


def losses(problem: Problem, plan: Plan, durations: Sequence[float]) -> list[float]:
    """What computing loses to each of `plan`'s loads, which take so many seconds, in seconds."""
    storage, copies = problem.storage, [0.0] * len(durations)
    if plan.staging_nbytes and plan.pacing != PLANNED:  # else nothing computes while something is copied
        copies = [extent_nbytes(problem, load) / storage.copy_bytes_per_second for load in plan.loads]
    return [storage.lost_seconds(seconds, copy) for seconds, copy in zip(durations, copies, strict=True)]


def row_stalls(problem: Problem, rows: Collection[int]) -> list[float]:
    """What each call waits for the rows that it reads by itself, in seconds."""
    by_rows = set(rows)
    return [
        math.fsum(problem.weights[weight].row_seconds for weight in call.reads if weight in by_rows)
        for call in problem.calls
    ]


def all_seconds(problem: Problem, loads: Sequence[Load], ebbs: Sequence[Ebb]) -> list[float]:
    """How long the storage needs for each of a plan's loads, pages that have ebbed away included."""
    regained = regained_nbytes(problem, loads, ebbs)
    per_byte = 1 / problem.storage.regain_bytes_per_second
    return [part_seconds(problem, load) + per_byte * nbytes for load, nbytes in zip(loads, regained, strict=True)]


def call_seconds(
    problem: Problem, rows: Sequence[int], first_calls: Sequence[int], lost: Sequence[float]
) -> list[float]:
    """What each call takes once its weights are there; it bears what computing has `lost` to each of their loads."""
    seconds = [call.seconds + stall for call, stall in zip(problem.calls, row_stalls(problem, rows), strict=True)]
    for call, own in zip(first_calls, lost, strict=True):
        if call < len(seconds):
            seconds[call] += own
    return seconds
