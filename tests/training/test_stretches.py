"""When weights and gradients lie idle, by a tape."""

from __future__ import annotations

from collections.abc import Sequence

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


def tape(weight: StorageRecord | None, *gradients: StorageRecord, parameter: torch.Tensor = WEIGHT) -> Tape:
    """Two iterations, of which the second is looked at."""
    events = tuple(Event(kind) for kind in KINDS * 2)
    known = {weight: parameter} if weight is not None else {}
    return Tape(events, (), (), (), (), known, dict.fromkeys(gradients, parameter))


def weight(*touches: int, calls: Sequence[int] = ()) -> StorageRecord:
    """Touched, and among that got by functions that make nodes, at these segments of each iteration."""
    found, made = (sorted(first + at for first in (0, COUNT) for at in each) for each in (touches, calls))
    return StorageRecord(16, -1, "", touches=found, calls=made, known_as=PARAMETERS)


def gaps(weight: StorageRecord, accumulated: int = 5, *, trained: bool = True) -> tuple[tuple[int, int], ...]:
    """Where its gradient comes to be in this segment."""
    gradients = [StorageRecord(1, first, "", accumulated=[first + accumulated]) for first in (0, COUNT)]
    parameter = torch.nn.Parameter(torch.zeros(4), requires_grad=trained)
    found = find_idle(tape(weight, *gradients, parameter=parameter), COUNT, 16)
    return next(one.gaps for one in found if one.kind == PARAMETERS)


def test_a_weight_lies_idle_between_the_passes_and_the_step_and_on_into_the_next_iteration() -> None:
    assert gaps(weight(0, 5, 6, calls=[0])) == ((1, 5), (7, 8))


def test_not_between_two_uses_by_one_graph() -> None:
    assert gaps(weight(0, 2, 4, calls=[0, 2]), 4) == ((3, 4), (5, 8))


def test_nor_where_another_graph_is_gone_through_in_between() -> None:
    """As a gradient penalty does, which accumulates nothing."""
    assert gaps(weight(0, 3, 5, calls=[0, 3])) == ((4, 5), (6, 8))


def test_but_of_a_weight_that_is_not_trained() -> None:
    assert gaps(weight(0, 2, 4, calls=[0, 2]), trained=False) == ((1, 2), (3, 4), (5, 8))


def test_the_next_forward_pass_may_begin_in_the_last_segment() -> None:
    """Which is not over yet; the one of the iteration before is."""
    assert gaps(weight(2, 5, 7, calls=[2, 7])) == ((3, 5), (6, 7))
    assert gaps(weight(2, 5, 7, calls=[2])) == ((0, 2), (3, 5), (6, 7))


def test_a_weight_that_nothing_uses_is_none() -> None:
    assert gaps(weight()) == ()


def gradient(first: int, died: int | None = None) -> StorageRecord:
    """Made in segment 3, the parameter's from 4 on, clipped in 5, used by the step."""
    touches = [first + at for at in (3, 4, 5, 6)]
    record = StorageRecord(16, first + 3, "", died=died, touches=touches, accumulated=[first + 4])
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


def test_of_two_gradients_of_one_parameter_neither_leaves() -> None:
    """As `p.grad` is another one then."""
    assert not list(find_idle(tape(None, gradient(0, COUNT - 1), gradient(COUNT), gradient(COUNT)), COUNT, 1))


def test_what_is_small_stays() -> None:
    assert not list(find_idle(tape(weight(0, 5), gradient(COUNT)), COUNT, 17))
