"""What makes a problem sound: every number in its range, calls that nest, weights that exist."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.errors import PlanError
from penstock.planning.fields import MAX_NBYTES
from penstock.planning.kinds import SLOWDOWNS

if TYPE_CHECKING:
    from penstock.planning.problem import Call, Problem, Storage, Weight

MAX_BYTES_PER_SECOND = 1e15  # a thousand times any memory


def check_problem(problem: Problem) -> None:
    """Raises PlanError where a number makes no sense; the message names the field."""
    _check_storage(problem.storage)
    _check_sizes(problem)
    for index, weight in enumerate(problem.weights):
        _check_weight(weight, f"weights[{index}] ({weight.name})", problem.storage.block_nbytes)
    for index, call in enumerate(problem.calls):
        path = f"calls[{index}] ({call.name})"
        _check_call(call, path, index, len(problem.calls), len(problem.weights))
        if not 0 <= call.activations_nbytes <= problem.reserve.activations_nbytes:
            raise PlanError(
                f"{path}.activations_nbytes is {call.activations_nbytes}, outside 0 to the reserve's "
                f"{problem.reserve.activations_nbytes}: record the pass again"
            )
    _check_nesting(problem.calls)
    _check_slices(problem)


def _check_storage(storage: Storage) -> None:
    for name in ("bytes_per_second", "copy_bytes_per_second", "regain_bytes_per_second"):
        rate = getattr(storage, name)
        if not (math.isfinite(rate) and 0 < rate <= MAX_BYTES_PER_SECOND):
            raise PlanError(
                f"storage.{name} is {rate}, not between zero and {MAX_BYTES_PER_SECOND:.0e}: measure it again"
            )
    for name in ("request_seconds", "load_compute_seconds", "read_compute_share", "copy_compute_share"):
        if not _is_duration(seconds := getattr(storage, name)):
            raise PlanError(f"storage.{name} is {seconds}, not zero or more of seconds: measure it again")
    if not 1 <= storage.block_nbytes <= MAX_NBYTES:
        raise PlanError(f"storage.block_nbytes is {storage.block_nbytes}, not above zero: take the device's block size")
    if not 1 <= storage.page_nbytes <= MAX_NBYTES:
        raise PlanError(f"storage.page_nbytes is {storage.page_nbytes}, not above zero: take the system's page size")


def _check_sizes(problem: Problem) -> None:
    sizes = {
        "budget_nbytes": problem.budget_nbytes - 1,  # a budget of zero is nonsense, a reserve of zero is not
        "tiny_nbytes": problem.tiny_nbytes,
        "reserve.activations_nbytes": problem.reserve.activations_nbytes,
        "reserve.io_nbytes": problem.reserve.io_nbytes,
        "reserve.bookkeeping_nbytes": problem.reserve.bookkeeping_nbytes,
    }
    for name, nbytes in sizes.items():
        if not 0 <= nbytes <= MAX_NBYTES:
            raise PlanError(f"{name} is out of range ({nbytes + (name == 'budget_nbytes')}): give a number of bytes")


def _check_weight(weight: Weight, path: str, block_nbytes: int) -> None:
    if not 1 <= weight.nbytes <= MAX_NBYTES:
        raise PlanError(f"{path}.nbytes is {weight.nbytes}: leave out weights without bytes")
    if not 0 <= weight.offset_in_block < block_nbytes:
        raise PlanError(f"{path}.offset_in_block is {weight.offset_in_block}: give it modulo {block_nbytes}")
    if weight.file is not None and weight.file_offset % block_nbytes != weight.offset_in_block:
        raise PlanError(
            f"{path}.file_offset is {weight.file_offset}, which is not {weight.offset_in_block} modulo {block_nbytes}: "
            "take both from the same header"
        )
    if weight.requests < 0:
        raise PlanError(f"{path}.requests is {weight.requests}: give a count")
    if not _is_duration(weight.row_seconds):
        raise PlanError(f"{path}.row_seconds is {weight.row_seconds}, not a duration: measure it again")
    if not 1 <= weight.rows <= weight.nbytes or weight.nbytes % weight.rows:
        raise PlanError(f"{path}.rows is {weight.rows}: give a divisor of its {weight.nbytes} bytes")


def _check_call(call: Call, path: str, index: int, call_count: int, weight_count: int) -> None:
    if not _is_duration(call.seconds):
        raise PlanError(f"{path}.seconds is {call.seconds}, not a duration: record the pass again")
    if not index <= call.last < call_count:
        raise PlanError(f"{path}.last is {call.last}, outside {index} to {call_count - 1}: record the pass again")
    if call.kind not in SLOWDOWNS:
        raise PlanError(f"{path}.kind is {call.kind!r}: choose one of {', '.join(SLOWDOWNS)}")
    if call.load_nbytes is not None and not 0 <= call.load_nbytes <= MAX_NBYTES:
        raise PlanError(f"{path}.load_nbytes is {call.load_nbytes}, out of range: measure it again")
    if len(set(call.reads)) != len(call.reads):
        raise PlanError(f"{path}.reads names a weight twice: name each once")
    for weight in call.reads:
        if not 0 <= weight < weight_count:
            raise PlanError(f"{path}.reads names weight {weight} of {weight_count}: record the pass again")


def _check_nesting(calls: Sequence[Call]) -> None:
    open_until: list[int] = []
    for index, call in enumerate(calls):
        while open_until and open_until[-1] < index:
            open_until.pop()
        if open_until and call.last > open_until[-1]:
            raise PlanError(
                f"calls[{index}] ({call.name}).last is {call.last}, but the call around it ends with "
                f"{open_until[-1]}: calls nest, so record the pass again"
            )
        open_until.append(call.last)


def _check_slices(problem: Problem) -> None:
    """A call that can be computed slice by slice is a leaf, and one weight's slices are what it goes through."""
    if not _is_duration(problem.slice_seconds):
        raise PlanError(f"slice_seconds is {problem.slice_seconds}, not a duration: measure it again")
    for index, call in enumerate(problem.calls):
        sliceable = [weight for weight in call.reads if problem.weights[weight].rows > 1]
        if sliceable and (len(sliceable) > 1 or call.last != index):
            raise PlanError(
                f"calls[{index}] ({call.name}) cannot be computed slice by slice, as "
                f"{problem.weights[sliceable[0]].name} says: give that weight one row"
            )


def _is_duration(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds >= 0
