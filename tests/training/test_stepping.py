"""A step in parts: the same step, to the last bit, for everybody but itself."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.training.loops import Tower, same, train
from tests.training.test_states import away, inputs, same_state
from torch import nn

import penstock
from penstock.planning.swap_problem import Link
from penstock.training.stepping import PartedGroups, parts, steps_in_parts

MIB = 1 << 20
STEPPED: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "Rprop": torch.optim.Rprop,
    "ASGD": torch.optim.ASGD,
    "Adafactor": torch.optim.Adafactor,
    "Muon": torch.optim.Muon,
}


def make(optimizer: Callable[..., torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Two matrices of a mebibyte, with small ones between, in two groups; the second without a gradient for one."""
    torch.manual_seed(0)
    model = nn.ParameterList(torch.randn(size, 512) for size in (4, 512, 4, 4, 512, 4))
    groups = [{"params": list(model)[:3]}, {"params": list(model)[3:], "lr": 1e-3}]
    return model, optimizer(groups)


def with_gradients(model: nn.Module, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=chance) if index != 3 else None


@pytest.mark.parametrize("kind", STEPPED)
def test_a_step_in_parts_is_the_same_to_the_last_bit(kind: str) -> None:
    plain, plainly = make(STEPPED[kind])
    model, optimizer = make(STEPPED[kind])
    groups = optimizer.param_groups
    seen: list[list[int]] = []
    assert steps_in_parts(optimizer)
    for seed in range(3):
        with_gradients(plain, seed)
        with_gradients(model, seed)
        plainly.step()
        seen.clear()
        parted = PartedGroups(optimizer, lambda number, found: seen.append([number, len(found)]))
        optimizer.step()
        parted.restore(optimizer)
    assert seen == [[0, 1], [1, 2], [2, 1], [3, 2]]
    assert optimizer.param_groups is groups
    assert type(groups) is list
    assert same(plain, model)
    assert same_state(plainly, optimizer)


def test_what_is_not_torchs_own_steps_as_a_whole() -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    assert not steps_in_parts(make(Own)[1])
    assert not steps_in_parts(torch.optim.LBFGS([torch.zeros(2, requires_grad=True)]))
    assert not steps_in_parts(torch.optim.SparseAdam([torch.zeros(2, requires_grad=True)]))

    class Named(torch.optim.SGD):
        """Which steps as its parent does."""

    assert steps_in_parts(make(Named)[1])


def test_a_step_that_has_its_parents_within_it_is_one() -> None:
    """torch has the hooks of a step called around both, once there was an optimizer of the parent's own class."""

    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            found = super().step(closure)
            for group in self.param_groups:
                torch._foreach_mul_(group["params"], 0.999)
            return found

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Tower(layers=6, width=512)
        return model, Own(model.parameters(), lr=1e-2, momentum=0.9)

    torch.optim.SGD([torch.zeros(2, requires_grad=True)])
    plain, plainly = made()
    expected = train(plain, plainly, inputs(9), one=without_gradients)
    model, optimizer = made()
    within = penstock.autoswap(model, optimizer, budget=30 * MIB)
    assert train(model, optimizer, inputs(9), within, one=without_gradients) == expected
    assert same(plain, model)
    assert within.stats.iterations >= 3
    assert within.stats.departed == 0


def without_gradients(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    with torch.no_grad():
        optimizer.step()
    return float(loss.detach())


def test_only_the_step_itself_sees_parts() -> None:
    model, optimizer = make(STEPPED["SGD"])
    counted: dict[str, int] = {}
    optimizer.register_step_pre_hook(lambda o, *_: counted.update(before=sum(1 for _ in o.param_groups)))
    optimizer.register_step_post_hook(lambda o, *_: counted.update(after=len(list(o.param_groups))))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        counted["closure"] = sum(1 for _ in optimizer.param_groups)
        loss = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
        loss.backward()
        return loss

    begun: list[int] = []
    parted = PartedGroups(optimizer, lambda number, found: begun.append(number))
    optimizer.step(closure)
    assert counted == {"before": 2, "closure": 2, "after": 2}
    assert begun == [0, 1, 2, 3]
    other = copy.deepcopy(optimizer)
    assert type(other.param_groups) is list
    optimizer.add_param_group({"params": [torch.zeros(3, requires_grad=True)]})
    parted.restore(optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 3, 1]
    assert len(list(parts(optimizer.param_groups))) == 5


@pytest.fixture
def _fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured beside storages, and of links, differs from run to run."""
    monkeypatch.setattr(sys.modules["penstock.training.meter"], "read_memory", lambda: None)
    link = Link(1e-4, 1e9)
    monkeypatch.setattr(sys.modules["penstock.training.planner"], "measure_links", lambda folder: (link, link))


@pytest.mark.usefixtures("_fixed")
def test_a_step_has_only_the_state_in_memory_that_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Tower(layers=8, width=512)  # 8 MiB, and as much of gradients
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    hollow: list[int] = []
    original = sys.modules["torch.optim.adam"].adam

    def counting(parameters: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        states = [state["exp_avg"] for state in optimizer.state.values() if len(state)]
        hollow.append(sum(state.is_meta for state in states))
        original(parameters, *args, **kwargs)

    batches = inputs(9, rows=32)
    plain, plainly = make()
    expected = train(plain, plainly, batches)
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "adam", counting)
    model, optimizer = make()
    within = penstock.autoswap(model, optimizer, budget=24 * MIB)  # together with the state it takes 33
    with within:
        assert train(model, optimizer, batches) == expected
        assert within.plan is not None
        assert within.plan.peak_nbytes <= 24 * MIB
        assert within.stats.departed == 0
        assert within.stats.iterations >= 3
    assert away(within) >= 8
    assert min(hollow[-len(hollow) // 9 :]) >= 4  # in each part of the last step
    assert same(plain, model)
    assert same_state(plainly, optimizer)


@pytest.mark.usefixtures("_fixed")
def test_after_an_iteration_that_departed_state_is_away_again() -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Tower(layers=8, width=512)
        return model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)

    batches = [*inputs(8, rows=32), *inputs(1, rows=16), *inputs(2, rows=32)]
    plain, plainly = make()
    expected = train(plain, plainly, batches)
    model, optimizer = make()
    with penstock.autoswap(model, optimizer, budget=20 * MIB) as within:
        assert train(model, optimizer, batches[:8]) == expected[:8]
        assert within.plan is not None
        gone = sum(state["momentum_buffer"].is_meta for state in optimizer.state.values())
        assert gone > 0
        assert train(model, optimizer, batches[8:9]) == expected[8:9]
        assert within.stats.departed == 1
        assert sum(state["momentum_buffer"].is_meta for state in optimizer.state.values()) >= gone
        assert train(model, optimizer, batches[9:]) == expected[9:]
        assert within.stats.departed == 1
    assert same(plain, model)
    assert same_state(plainly, optimizer)


@pytest.mark.usefixtures("_fixed")
def test_a_step_that_fails_leaves_the_optimizer_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Tower(layers=4, width=512)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    with penstock.autoswap(model, optimizer, budget=20 * MIB):
        train(model, optimizer, inputs(1, rows=32))
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["torch.optim.sgd"], "sgd", lambda *args, **kwargs: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                train(model, optimizer, inputs(1, rows=32))
        assert len(list(optimizer.param_groups)) == 1
        train(model, optimizer, inputs(8, rows=32))
    assert type(optimizer.param_groups) is list
