"""Steps that begin only once all that they use is in memory, so that no disk that fails leaves one half done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.loops import MIB, Tower, failing, same, step, train
from tests.training.parameters import FAST, moved
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


def least(*, atomic_steps: bool) -> int:
    """The smallest budget, as a smaller one is refused."""
    model, optimizer = make()
    within = penstock.autoswap(model, optimizer, budget=MIB, atomic_steps=atomic_steps)
    with pytest.raises(penstock.BudgetInfeasibleError) as caught:
        train(model, optimizer, inputs(), within)
    assert caught.value.needed_nbytes is not None
    return caught.value.needed_nbytes


def returns_in_mid_step(within: AutoSwap) -> list[int]:
    """Segments in which the plan waits for something while a step is going on."""
    assert within.plan is not None
    assert within.iteration is not None
    events = within.iteration.events
    kinds = [event.kind for event in events]
    begin, end = kinds.index(STEP_BEGINS), kinds.index(STEP_ENDED)
    return [swap.returns for swap in within.plan.swaps if begin < swap.returns % len(events) < end]


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


def test_what_would_come_back_in_mid_step_comes_back_before_or_stays() -> None:
    kinds = [SAVED, TAKEN, STEP_BEGINS, STEP_PART, STEP_PART, STEP_ENDED]
    ends = {  # (leaves, returns): what returns when the step is atomic
        (1, 2): 2,
        (1, 3): 2,
        (1, 4): 2,
        (1, 5): 5,  # after the step
        (2, 4): None,
        (4, 5): 5,
        (4, 7): 7,  # in the next iteration
        (4, 9): 8,
        (5, 10): 8,
    }
    absences = tuple(Absence(number, MIB, *gap) for number, gap in enumerate(ends))
    iteration = Iteration(tuple(Event(kind) for kind in kinds), (0.0,) * 6, (0,) * 6, absences, {}, 0, absences[:3])
    found = back_before_steps(iteration)
    assert {(absences[a.storage].leaves, absences[a.storage].returns): a.returns for a in found.absences} == {
        gap: returns for gap, returns in ends.items() if returns is not None
    }
    assert [absence.returns for absence in found.recomputable] == [2, 2, 2]


class FailingOnce:
    """Reads as the system does, but for one."""

    def __init__(self) -> None:
        self._read = swapfile.os.preadv
        self.at: int | None = None
        self.count = 0

    def __call__(self, *arguments: Any) -> int:
        self.count += 1
        return failing() if self.count - 1 == self.at else self._read(*arguments)


@pytest.mark.parametrize(("parameters", "rows"), [(False, 512), (True, 512), (False, 500)])
def test_whichever_read_fails_a_step_is_done_or_not_begun(
    monkeypatch: pytest.MonkeyPatch, parameters: bool, rows: int
) -> None:
    """Also of an iteration that departs."""
    budget = least(atomic_steps=True)
    batch, reads = inputs(1)[0], FailingOnce()
    monkeypatch.setattr(swapfile.os, "preadv", reads)
    model, optimizer = make()
    within = penstock.autoswap(model, optimizer, budget=budget, parameters=parameters, atomic_steps=True)
    stepped = []
    with within:
        for _ in range(9):
            reads.count = 0
            step(model, optimizer, batch)
            stepped.append(512)
        a_step = reads.count
        assert a_step > 3
        for reads.at in range(a_step):
            before = as_it_is(model)
            reads.count = 0
            try:
                step(model, optimizer, batch[:rows])
                stepped.append(rows)
            except StorageError:
                assert all(torch.equal(*pair) for pair in zip(before, as_it_is(model), strict=True))
            reads.count = a_step  # nothing fails now
            step(model, optimizer, batch)
            stepped.append(512)
    plain, plainly = make()
    train(plain, plainly, [batch[:rows] for rows in stepped])
    assert same(plain, model)


def as_it_is(model: nn.Module) -> list[torch.Tensor]:
    """Its weights, in memory or not."""
    return [value.clone() for value in model.state_dict().values()]
