"""Steps that begin only once all that they use is in memory, so that no disk that fails leaves one half done."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tests.training.loops import MIB, Tower, failing, same, step, train
from tests.training.parameters import FAST, One, moved
from torch import nn

import penstock
from penstock.errors import StorageError
from penstock.planning.swap_problem import Absence
from penstock.training import swapfile
from penstock.training.autoswap import AutoSwap
from penstock.training.iteration import Iteration, back_before_steps
from penstock.training.movable import State
from penstock.training.tape import SAVED, STEP_BEGINS, STEP_ENDED, STEP_PART, TAKEN, Event

LINK = FAST
WIDTH = 512

pytestmark = pytest.mark.usefixtures("steady")


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Weights and gradients of 4 MiB, state of 8, and a dozen activations of 1."""
    torch.manual_seed(0)
    model = Tower(layers=4, width=WIDTH)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def inputs(count: int = 9) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(3)
    return [torch.randn(512, WIDTH, generator=chance) for _ in range(count)]


@functools.cache
def least(*, atomic_steps: bool, one: One = step) -> int:
    """The smallest budget, as a smaller one is refused."""
    model, optimizer = make()
    within = penstock.autoswap(model, optimizer, budget=MIB, atomic_steps=atomic_steps)
    with pytest.raises(penstock.BudgetInfeasibleError) as caught:
        train(model, optimizer, inputs(), within, one=one)
    assert caught.value.needed_nbytes is not None
    return caught.value.needed_nbytes


def test_a_closure_is_no_part_of_what_is_atomic() -> None:
    """The model is evaluated before anything is changed, so activations may leave as ever."""

    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(x).square().mean()
            loss.backward()
            return loss

        return float(optimizer.step(closure).detach())

    assert least(atomic_steps=True, one=one) <= 1.1 * least(atomic_steps=True)


def returns_in_mid_step(within: AutoSwap) -> list[int]:
    """Segments in which the plan waits for something while a step is going on."""
    assert within.plan is not None
    assert within.iteration is not None
    events = within.iteration.events
    kinds = [event.kind for event in events]
    begin, end = kinds.index(STEP_PART), kinds.index(STEP_ENDED)
    return [swap.returns for swap in within.plan.swaps if begin < swap.returns % len(events) <= end]


def test_training_is_the_same_to_the_last_bit_and_nothing_comes_back_in_mid_step() -> None:
    budget = least(atomic_steps=True)
    assert budget > least(atomic_steps=False)
    plain, plainly = make()
    expected = train(plain, plainly, inputs())
    model, optimizer = make()
    within = penstock.autoswap(model, optimizer, budget=budget, atomic_steps=True)
    assert train(model, optimizer, inputs(), within) == expected
    assert same(plain, model)
    assert returns_in_mid_step(within) == []
    assert moved(within, State) > 0
    assert within.stats.departed == 0


def test_otherwise_state_comes_back_part_by_part() -> None:
    model, optimizer = make()
    within = penstock.autoswap(model, optimizer, budget=least(atomic_steps=False))
    train(model, optimizer, inputs(), within)
    assert returns_in_mid_step(within)


@pytest.mark.parametrize(
    ("parts", "ends"),
    [
        (
            2,  # (leaves, returns) of absences, and when they return where the step is atomic; None: they stay
            {(1, 2): 2, (1, 3): 3, (1, 4): 3, (1, 5): 3, (2, 4): 3, (3, 5): None, (4, 7): 7, (4, 10): 9, (5, 11): 9},
        ),
        (0, {(1, 2): 2, (1, 3): 2, (2, 3): None, (2, 5): 5, (2, 6): 6, (3, 7): 6}),
    ],
)
def test_what_would_come_back_in_mid_step_comes_back_before_or_stays(
    parts: int, ends: dict[tuple[int, int], int | None]
) -> None:
    step_parts = [Event(STEP_PART, part=part) for part in range(parts)]
    events = (Event(SAVED), Event(TAKEN), Event(STEP_BEGINS), *step_parts, Event(STEP_ENDED))
    absences = tuple(Absence(number, MIB, *gap) for number, gap in enumerate(ends))
    nothing = (0,) * len(events)
    found = back_before_steps(Iteration(events, nothing, nothing, absences, {}, 0, absences[:1]))
    assert {(absences[a.storage].leaves, absences[a.storage].returns): a.returns for a in found.absences} == {
        gap: returns for gap, returns in ends.items() if returns is not None
    }
    assert [absence.returns for absence in found.recomputable] == [2]


def test_nothing_leaves_in_the_middle_of_a_step_without_parts() -> None:
    """As one of LBFGS, which evaluates the model as often as it likes."""
    kinds = (STEP_BEGINS, SAVED, TAKEN, STEP_ENDED, SAVED, TAKEN)
    absence = Absence(1, MIB, 2, 5)
    iteration = Iteration(tuple(map(Event, kinds)), (0,) * 6, (0,) * 6, (absence,), {}, 0)
    assert [(found.leaves, found.returns) for found in back_before_steps(iteration).absences] == [(3, 5)]


class FailingFrom:
    """Reads as the system does, but fails from one on."""

    def __init__(self) -> None:
        self._read = swapfile.os.preadv
        self.at: int | None = None
        self.count = 0

    def __call__(self, *arguments: Any) -> int:
        self.count += 1
        return failing() if self.at is not None and self.count > self.at else self._read(*arguments)


def left_half_done(
    monkeypatch: pytest.MonkeyPatch, *, parameters: bool, rows: int, atomic_steps: bool
) -> tuple[int, int]:
    """Train, with steps of so many rows in which reads fail, each time from a later one on: how many raised, and of
    those how many with another weight.

    What was not begun is tried again.
    """
    batch, reads, stepped = inputs(1)[0], FailingFrom(), []
    budget = least(atomic_steps=atomic_steps)
    monkeypatch.setattr(swapfile.os, "preadv", reads)
    model, optimizer = make()
    raised = half_done = 0
    with penstock.autoswap(model, optimizer, budget=budget, parameters=parameters, atomic_steps=atomic_steps):
        for _ in range(9):
            step(model, optimizer, batch)
            stepped.append(512)
        for at in range(14):
            before = as_it_is(model)
            reads.count, reads.at = 0, at
            try:
                step(model, optimizer, batch[:rows])
                stepped.append(rows)
            except StorageError:
                reads.at = None
                raised += 1
                half_done += any(not torch.equal(*pair) for pair in zip(before, as_it_is(model), strict=True))
            reads.at = None
            if half_done:
                return raised, half_done
            step(model, optimizer, batch)
            stepped.append(512)
    plain, plainly = make()
    train(plain, plainly, [batch[:rows] for rows in stepped])
    assert same(plain, model)
    return raised, half_done


@pytest.mark.parametrize("rows", [512, 500], ids=["followed", "departed"])
@pytest.mark.parametrize("parameters", [False, True])
def test_wherever_reads_begin_to_fail_a_step_is_done_or_not_begun(
    monkeypatch: pytest.MonkeyPatch, parameters: bool, rows: int
) -> None:
    raised, half_done = left_half_done(monkeypatch, parameters=parameters, rows=rows, atomic_steps=True)
    assert raised > 0
    assert half_done == 0


def test_otherwise_a_step_may_be_left_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_half_done(monkeypatch, parameters=False, rows=500, atomic_steps=False)[1] > 0


def as_it_is(model: nn.Module) -> list[torch.Tensor]:
    """Its weights, in memory or not."""
    return [value.clone() for value in model.state_dict().values()]
