"""From a trace to a planning problem: plain numbers about weights, calls, storage and what else needs memory."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from penstock.capacity import LoadCapacity
from penstock.machine import StorageProfile
from penstock.planning import Call, Problem, Reserve, Storage, Weight
from penstock.runtime.binding import BoundWeight
from penstock.runtime.devices.cpu_queue import READ_NBYTES, THREADS
from penstock.runtime.requests import bounce_nbytes, coalesced, read_requests
from penstock.runtime.rows import READERS, SPAN_NBYTES
from penstock.runtime.storage import BLOCK_NBYTES
from penstock.trace import Trace, TracedCall

WORKSPACE_NBYTES = 256 << 10
"""Kernels' own buffers and the allocator's rounding, until a pass was measured."""

CALL_NBYTES = 4 << 10
"""Python objects of plan and schedule, per layer call."""

MARGIN = 64
MARGIN_NBYTES = 2 << 20
"""Measured overheads differ from pass to pass and, by the allocator's luck, from process to process: one part in
`MARGIN` of the budget is kept free beyond them, and of small budgets so many bytes, but no more than an eighth."""

TINY_NBYTES = 32 << 10

SLICE_SECONDS = 1e-4
"""What each slice of a layer takes beyond its share: hooks, a copy of its part of the result, a kernel's begin."""

LOAD_COMPUTE_SECONDS = 1.5e-4
"""What computing loses to each load, however small, in waking a reader and binding a weight."""

READ_COMPUTE_SHARE = 0.05
"""What it loses besides, of the seconds that storage is busy."""

COPY_COMPUTE_SHARE = 1.0
"""What it loses of the seconds that a copy takes. Fitted, as are the two above, to what passes of four models took
longer than the resident ones, stalls left out, in 21 configurations on two cores; single ones are off by half of it."""

MEASURABLE_NBYTES = 8 << 20
"""Below such a budget the kernel's counters and Python's own garbage are coarser than what they would measure."""


def make_problem(
    trace: Trace,
    weights: Sequence[BoundWeight],
    profile: StorageProfile,
    *,
    budget_nbytes: int,
    activations_nbytes: int,
    fixed_nbytes: int,
    overhead_nbytes: int,
    moved: Collection[int],
    caution_nbytes: int = 0,
    capacity: LoadCapacity | None = None,
) -> Problem:
    """The problem that running `trace` within the budget poses.

    Args:
        activations_nbytes: what to keep free for a pass's own tensors.
        fixed_nbytes: buffers and parameters that do not stream.
        overhead_nbytes: what a pass was measured to take beyond arena and I/O buffers, activations included; 0 where
            none was, and `WORKSPACE_NBYTES` and half of the activations are kept free for kernels instead. Below
            `MEASURABLE_NBYTES` it does not count.
        moved: weights that are moved to an aligned address once they have arrived.
        caution_nbytes: what to keep free besides.
        capacity: what can be loaded beside each call; None where the plan does not depend on it.
    """
    specs = _weights(trace, weights, profile, moved)
    rows = {index for index, spec in enumerate(specs) if spec.rows_only}
    calls = tuple(
        Call(
            call.module,
            call.seconds,
            tuple(sorted({*call.reads, *(rows & set(call.row_reads))})),
            call.last,
            _activations_nbytes(call.live_nbytes, trace.activations_nbytes, activations_nbytes),
            call.kind,
            None if capacity is None else _load_nbytes(capacity, call, weights),
        )
        for call in trace.calls
    )
    if overhead_nbytes and budget_nbytes >= MEASURABLE_NBYTES:
        bookkeeping_nbytes = max(overhead_nbytes - activations_nbytes, 0) + margin_nbytes(budget_nbytes)
    else:
        workspace_nbytes = WORKSPACE_NBYTES + activations_nbytes // 2
        bookkeeping_nbytes = fixed_nbytes + CALL_NBYTES * len(calls) + workspace_nbytes
    has_rows = any(call.row_reads for call in trace.calls)
    reserve = Reserve(activations_nbytes, _io_nbytes(weights, has_rows), bookkeeping_nbytes + caution_nbytes)
    storage = _storage(profile)
    key = repr((specs, calls, storage, budget_nbytes, reserve))
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    return Problem(specs, calls, storage, budget_nbytes, reserve, fingerprint, TINY_NBYTES, SLICE_SECONDS)


def _weights(
    trace: Trace, weights: Sequence[BoundWeight], profile: StorageProfile, moved: Collection[int]
) -> tuple[Weight, ...]:
    read = {index for call in trace.calls for index in call.reads}
    sliceable = _sliceable(trace, weights)
    return tuple(
        _weight(
            weight,
            profile,
            row_count=None if index in read else trace.row_counts.get(index),
            rows=weight.rows if index in sliceable else 1,
            is_moved=index in moved,
        )
        for index, weight in enumerate(weights)
    )


def _storage(profile: StorageProfile) -> Storage:
    return Storage(
        profile.bytes_per_second,
        profile.request_seconds,
        BLOCK_NBYTES,
        profile.copy_bytes_per_second,
        load_compute_seconds=LOAD_COMPUTE_SECONDS,
        read_compute_share=READ_COMPUTE_SHARE,
        copy_compute_share=COPY_COMPUTE_SHARE,
        regain_bytes_per_second=profile.regain_bytes_per_second,
        page_nbytes=profile.page_nbytes,
    )


def _load_nbytes(capacity: LoadCapacity, call: TracedCall, weights: Sequence[BoundWeight]) -> int:
    weight_nbytes = sum(weights[index].source.nbytes for index in call.reads)
    return capacity.most_nbytes(call.kind, call.seconds, weight_nbytes)


def _activations_nbytes(live_nbytes: int, traced_nbytes: int, planned_nbytes: int) -> int:
    """What to expect of one call where `planned_nbytes` are kept free for a pass that was traced to take so many."""
    if not live_nbytes or not traced_nbytes:
        return planned_nbytes
    return min(planned_nbytes, live_nbytes * max(planned_nbytes, traced_nbytes) // traced_nbytes)


def margin_nbytes(budget_nbytes: int) -> int:
    """What is kept free of a budget because measurements differ."""
    return max(budget_nbytes // MARGIN, min(MARGIN_NBYTES, budget_nbytes // 8))


def _sliceable(trace: Trace, weights: Sequence[BoundWeight]) -> set[int]:
    """Weights that every call which reads them can compute with slice by slice."""
    whole: set[int] = set()
    for position, call in enumerate(trace.calls):
        parts = [index for index in call.reads if call.module in weights[index].slice_paths]
        whole |= {index for index in call.reads if index not in parts or len(parts) > 1 or call.last != position}
    return {index for index, weight in enumerate(weights) if weight.rows > 1} - whole


def _weight(
    weight: BoundWeight, profile: StorageProfile, *, row_count: int | None, rows: int, is_moved: bool
) -> Weight:
    """What planning knows of `weight`; `row_count` rows of it are looked up and it is not read whole, if not None."""
    source = weight.source
    pieces = coalesced(source.pieces)
    lead = pieces[0].file_offset % BLOCK_NBYTES if pieces else 0
    requests = read_requests(source, lead, block_nbytes=BLOCK_NBYTES, read_nbytes=READ_NBYTES)
    row_seconds = (row_count or 0) * profile.request_seconds / 2
    return Weight(
        weight.name,
        max(source.nbytes, 1),
        lead,
        max(len(requests), 1),
        rows_only=row_count is not None,
        row_seconds=row_seconds,
        rows=rows,
        is_moved=is_moved,
        file=pieces[0].file if len(pieces) == 1 else None,
        file_offset=pieces[0].file_offset if pieces else 0,
    )


def _io_nbytes(weights: Sequence[BoundWeight], has_rows: bool) -> int:
    bounce = max(
        (bounce_nbytes(w.source, block_nbytes=BLOCK_NBYTES, read_nbytes=READ_NBYTES) for w in weights), default=0
    )
    return bounce * THREADS + (READERS * SPAN_NBYTES if has_rows else 0)
