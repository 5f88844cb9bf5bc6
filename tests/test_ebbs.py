"""A pass whose arena gives memory to activations: the same bits, in less memory, whatever happens on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from penstock.machine import storage_profile
from penstock.planning import Plan, Problem
from penstock.planning.ebbs import needed_nbytes as needed_with_ebbs
from penstock.planning.lifetimes import needed_nbytes as needed_without_ebbs

from .adversary import AdversarialDevice
from .planning.ebbing import least_plan, ring_plan
from .streaming import counted_memory, equal, plan_of, weight_nbytes

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")


class Ebbing:
    """A ring at the lowest level of activations at which everything finds a place, or else the least space."""

    name = "ebbing"

    def needed_nbytes(self, problem: Problem) -> int:
        return needed_with_ebbs(problem, sliced=False)

    def plan(self, problem: Problem) -> Plan:
        for level in sorted({call.activations_nbytes for call in problem.calls}):
            plan = ring_plan(problem, level)
            if plan is not None and plan.ebbs:
                return plan
        return least_plan(problem)


@pytest.fixture(autouse=True)
def ebbing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The strategy, and small pages, so that models may be small."""
    with monkeypatch.context() as patch:
        patch.setitem(penstock.planning.strategies.registry._STRATEGIES, "ebbing", Ebbing())
        patch.setattr(
            "penstock.planmaking.storage_profile", lambda path: replace(storage_profile(path), page_nbytes=4096)
        )
        yield


class Wide(nn.Module):
    """A convolutional network's shape: early layers are small and have large results, late ones the other way round."""

    def __init__(self, early: int = 4, late: int = 6, width: int = 256) -> None:
        super().__init__()
        self.early = nn.ModuleList(nn.Conv2d(1 if not index else 24, 24, 3, padding=1) for index in range(early))
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.late = nn.ModuleList(nn.Linear(24 if not index else width, width) for index in range(late))
        self.again: int | None = None
        self.error: BaseException | None = None
        self.begin: Callable[[], object] = lambda: None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.begin()
        for index, layer in enumerate(self.early):
            x = layer(x).relu()
            if index == 1 and self.error is not None:
                raise self.error
        x = self.pool(x).flatten(1)
        for index, layer in enumerate(self.late):
            x = layer(x).tanh()
            if index == self.again:
                wide = torch.ones(1, 24, 64, 64)
                x = x + self.early[2](wide).mean()
        return x


X = torch.linspace(-1, 1, 2 * 64 * 64).reshape(2, 1, 64, 64)


def build(**kwargs: Any) -> Wide:
    torch.manual_seed(0)
    return Wide(**kwargs)


def stream_ebbing(module: nn.Module, *, share: float = 0.3, **kwargs: Any) -> Plan:
    """Stream `module` in what its hardest call needs and a `share` of its weights."""
    with pytest.raises(penstock.BudgetInfeasibleError) as refusal:
        penstock.stream(build(), budget=1, example=X, strategy="ebbing")
    budget = refusal.value.needed_nbytes + int(share * weight_nbytes(module))
    penstock.stream(module, budget=budget, example=X, strategy="ebbing", **kwargs)
    plan = plan_of(module)
    assert plan.ebbs
    assert plan.loads
    return plan


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6])
def test_a_pass_with_ebbs_is_bit_identical_to_the_resident_one(share: float) -> None:
    device = AdversarialDevice(seed=int(share * 10))
    module = build()
    with torch.inference_mode():
        expected = build()(X)
        plan = stream_ebbing(module, share=share, device=device)
        for _ in range(4):
            assert equal(module(X), expected)
    passes_nbytes = 4 * sum(ebb.nbytes for ebb in plan.ebbs)
    assert device.given_back_nbytes == passes_nbytes
    assert penstock.inspect(module).stats.demand_loads == 0
    penstock.restore(module)
    with torch.inference_mode():
        assert equal(module(X), expected)


def test_it_runs_where_the_arena_and_the_most_activations_together_do_not_fit() -> None:
    module = build()
    plan = stream_ebbing(module)
    problem = penstock.inspect(module)._provision.deployment.in_force().problem
    assert plan.arena_nbytes + plan.reserve.total_nbytes > plan.budget_nbytes
    assert needed_with_ebbs(problem, sliced=False) < needed_without_ebbs(problem, sliced=False)
    penstock.restore(module)


@pytest.mark.parametrize("again", range(6))
def test_large_activations_where_none_were_planned_give_the_same_bits(again: int) -> None:
    module, resident = build(), build()
    stream_ebbing(module, device=AdversarialDevice(again))
    resident.again = again
    with torch.inference_mode():
        usual, unusual = build()(X), resident(X)
        for departs in (False, True, True, False, True, False):
            module.again = again if departs else None
            assert equal(module(X), unusual if departs else usual)
    penstock.restore(module)


@pytest.mark.parametrize("error", [ValueError("own"), KeyboardInterrupt()], ids=repr)
def test_after_an_error_amid_an_ebb_passes_are_right_and_ebb_again(error: BaseException) -> None:
    device, module = AdversarialDevice(3), build()
    plan = stream_ebbing(module, device=device)
    with torch.inference_mode():
        expected = build()(X)
        for _ in range(3):
            module.error = error
            with pytest.raises(type(error)):
                module(X)
            module.error = None
            before = device.given_back_nbytes
            assert equal(module(X), expected)
            assert device.given_back_nbytes - before == sum(ebb.nbytes for ebb in plan.ebbs)
    penstock.restore(module)


class Interrupted(AdversarialDevice):
    """Interrupts while memory is being given back, when it is told to."""

    def __init__(self) -> None:
        super().__init__(seed=5)
        self.interrupts = False

    def _note_given_back(self, nbytes: int) -> None:
        super()._note_given_back(nbytes)
        if self.interrupts:
            raise KeyboardInterrupt


def test_an_interrupt_while_memory_is_given_back_leaves_a_module_that_works() -> None:
    device, module = Interrupted(), build()
    stream_ebbing(module, device=device)
    with torch.inference_mode():
        expected = build()(X)
        for _ in range(3):
            device.interrupts = True
            with pytest.raises(KeyboardInterrupt):
                module(X)
            device.interrupts = False
            assert equal(module(X), expected)
    penstock.restore(module)


def test_an_ebb_of_the_first_call_begins_with_the_pass_as_activations_do() -> None:
    device, module = AdversarialDevice(2), build()
    plan = stream_ebbing(module, device=device)
    assert plan.ebbs[0].first_call == 0
    seen: list[int] = []
    module.begin = lambda: seen.append(device.given_back_nbytes)
    with torch.inference_mode():
        module(X)
    assert seen == [sum(ebb.nbytes for ebb in plan.ebbs if ebb.first_call == 0)]
    penstock.restore(module)


class EitherEnd(nn.Module):
    """Has large activations at its begin, or, if so called, at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(256, 256) for _ in range(8))

    def forward(self, x: torch.Tensor, late: bool = False) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            is_wide = index == (7 if late else 0)
            x = layer(x.expand(2000, 256)).mean(0, keepdim=True) if is_wide else layer(x)
        return x


def test_another_kind_of_call_gets_room_when_it_has_its_activations() -> None:
    torch.manual_seed(0)
    resident = EitherEnd()
    module, given = copy.deepcopy(resident), torch.linspace(-1, 1, 256)[None]
    problem_of = lambda: penstock.inspect(module)._provision.deployment.in_force().problem  # noqa: E731
    with pytest.raises(penstock.BudgetInfeasibleError) as refusal:
        penstock.stream(copy.deepcopy(module), budget=1, example=(given,), strategy="ebbing")
    budget = refusal.value.needed_nbytes + weight_nbytes(module) // 2
    penstock.stream(module, budget=budget, example=(given,), strategy="ebbing", device=AdversarialDevice(4))
    assert [ebb.first_call for ebb in plan_of(module).ebbs] == [0]
    with torch.inference_mode():
        assert equal(module(given), resident(given))
        assert equal(module(given, late=True), resident(given, late=True))
        wide = [call.activations_nbytes > 1 << 20 for call in problem_of().calls]
        assert wide == [True, *[False] * 6, True]
        assert {call for ebb in plan_of(module).ebbs for call in (ebb.first_call, ebb.last_call)} >= {0, 7}
        assert equal(module(given), resident(given))
    penstock.restore(module)


def test_layers_called_outside_a_pass_ebb_too() -> None:
    device, module = AdversarialDevice(7), build()
    stream_ebbing(module, device=device)
    resident = build()
    with torch.inference_mode():
        wide = resident.early[0](X)
        for _ in range(2):
            assert equal(module.early[0](X), wide)
            assert equal(module.early[1](wide), resident.early[1](wide))
            assert equal(module(X), resident(X))
    penstock.restore(module)


def test_a_recording_counts_no_weight_where_memory_was_lent() -> None:
    module = build()
    plan = stream_ebbing(module)
    with torch.inference_mode(), penstock.inspect(module).record() as recording:
        module(X)
    tracks = recording.tracks()
    assert max(each.resident_nbytes + each.streamed_nbytes for each in tracks.occupancy) <= plan.arena_nbytes
    assert not any("lent" in span.name for span in tracks.spans)
    penstock.restore(module)
