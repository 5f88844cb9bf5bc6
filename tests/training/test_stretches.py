"""When weights and gradients lie idle, by a tape."""

from __future__ import annotations

import pytest
import torch

from penstock.training.stretches import find_idle
from penstock.training.tape import (
    GRADIENTS,
    PARAMETERS,
    SAVED,
    STEP_BEGINS,
    STEP_ENDED,
    TAKEN,
    Event,
    StorageRecord,
    Tape,
)

KINDS = [SAVED, SAVED, SAVED, TAKEN, TAKEN, TAKEN, STEP_BEGINS, STEP_ENDED]
COUNT = len(KINDS)
WEIGHT = torch.nn.Parameter(torch.zeros(4))


def tape(weight: StorageRecord | None = None, *gradients: StorageRecord) -> Tape:
    """Two iterations, of which the second is looked at."""
    events = tuple(Event(kind, 0) for kind in KINDS * 2)
    known = {weight: torch.Tensor(WEIGHT)} if weight is not None else {}
    return Tape(events, (), (), (), (), known, dict.fromkeys(gradients, WEIGHT))


def weight(*touches: int) -> StorageRecord:
    return StorageRecord(16, -1, "", touches=list(touches), known_as=PARAMETERS)


def gaps(weight: StorageRecord) -> tuple[tuple[int, int], ...]:
    (found,) = find_idle(tape(weight), COUNT, 1)
    return found.gaps


def test_a_weight_lies_idle_between_the_passes_and_the_step_and_on_into_the_next_iteration() -> None:
    touches = [at + first for first in (0, COUNT) for at in (0, 5, 6)]
    assert gaps(weight(*touches)) == ((1, 5), (7, 8))


def test_not_between_two_uses_by_one_forward_pass() -> None:
    touches = [at + first for first in (0, COUNT) for at in (0, 2, 4)]
    assert gaps(weight(*touches)) == ((3, 4), (5, 8))


def test_a_use_after_the_step_may_begin_the_next_forward_pass() -> None:
    """In the last segment, which is not over yet; the one of the iteration before is."""
    touches = [-1, *(at + first for first in (0, COUNT) for at in (2, 5, 7))]
    assert gaps(weight(*touches)) == ((3, 5), (6, 7))


def test_a_weight_that_nothing_uses_is_none() -> None:
    assert gaps(weight()) == ()


def gradient(first: int, died: int | None = None) -> StorageRecord:
    """Made in segment 3, the parameter's from 4 on, clipped in 5, used by the step."""
    touches = [first + at for at in (3, 4, 5, 6)]
    record = StorageRecord(16, first + 3, "", died=died, touches=touches, accumulated=first + 4)
    record.known_as = GRADIENTS
    return record


@pytest.mark.parametrize(("died", "until"), [(COUNT - 1, COUNT), (COUNT + 1, COUNT + 2)])
def test_a_gradient_lies_idle_once_its_parameter_has_it_until_it_is_dropped_like_the_one_before(
    died: int, until: int
) -> None:
    later = gradient(COUNT)
    later.touches = [COUNT + at for at in (1, 4, 6)]
    (found,) = find_idle(tape(None, gradient(0, died), later), COUNT, 1)
    assert found.parameter is WEIGHT
    assert found.gaps == ((5, 6),)
    assert found.until == until


def test_a_gradient_that_stays_is_as_a_weight_is() -> None:
    kept = gradient(0)
    kept.touches += [COUNT + at for at in (0, 4, 6)]
    (found,) = find_idle(tape(None, kept), COUNT, 1)
    assert found.gaps == ((1, 4), (5, 6), (7, 8))
    assert found.until is None


def test_what_is_small_stays() -> None:
    assert not list(find_idle(tape(weight(0, 5, 8, 13), gradient(COUNT)), COUNT, 17))
