"""Weights and gradients that leave memory between two uses: the same to the last bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.loops import same, step, train
from tests.training.parameters import (
    FAST,
    MIB,
    STEPS,
    One,
    assert_same,
    gone,
    inputs,
    least,
    make,
    moved,
    now_and_then,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import penstock
from penstock.training import pool
from penstock.training.movable import Gradient, Weight

LINK = FAST

pytestmark = pytest.mark.usefixtures("steady")


def test_training_is_the_same_to_the_last_bit_and_both_leave() -> None:
    within = assert_same(20 * MIB)  # all of it is 41
    assert moved(within, Weight) > 0
    assert moved(within, Gradient) > 0
    assert within.stats.iterations >= 3


def test_without_being_asked_for_they_stay() -> None:
    model, optimizer = make()
    with penstock.autoswap(model, optimizer, budget=32 * MIB) as within:
        train(model, optimizer, inputs())
        assert moved(within, Weight) == moved(within, Gradient) == 0
        assert not gone(model)


def test_a_budget_that_is_too_small_is_refused_with_one_that_works() -> None:
    found = least()
    assert found < 27 * MIB  # parameters and gradients are 27
    assert_same(found)


def clipped(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    return float(loss.detach())


def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    optimizer.zero_grad()
    total = 0.0
    for part in x.chunk(2):
        loss = model(part).square().mean()
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    return total


def zeroed_in_place(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    optimizer.zero_grad(set_to_none=False)
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def zeroed_late(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    loss = model(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def penalized(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    optimizer.zero_grad()
    x = x.clone().requires_grad_()
    loss = model(x).square().mean()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    total = loss + slope.square().sum()
    total.backward()
    optimizer.step()
    return float(total.detach())


def backward_twice(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward(retain_graph=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def twice_over(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    """Each weight thrice in one graph, whose gradients are summed in an order."""
    optimizer.zero_grad()
    loss = model(model(model(x))).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def checkpointed(use_reentrant: bool) -> One:
    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        x = x.clone().requires_grad_()
        for layer in (*model.layers, model.norm):  # type: ignore[misc]
            x = checkpoint(layer, x, use_reentrant=use_reentrant)
        loss = x.square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return one


def evaluated(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    loss = step(model, optimizer, x)
    with torch.no_grad():
        return loss + float(model(x[:8]).sum())


def evaluated_before_the_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    with torch.no_grad():
        found = float(model(x[:8]).sum())
    optimizer.step()
    return found


@pytest.mark.parametrize(
    "one",
    [
        clipped,
        accumulated,
        zeroed_in_place,
        zeroed_late,
        penalized,
        backward_twice,
        twice_over,
        checkpointed(True),
        checkpointed(False),
        evaluated,
        evaluated_before_the_step,
    ],
)
def test_loops_of_all_kinds(one: One) -> None:
    within = assert_same(least(one), one)
    assert moved(within, Weight) + moved(within, Gradient) > 0
    assert within.stats.iterations >= 3


def test_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(2048, 256)
            self.layers = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.layers(self.embedding(ids)), self.embedding.weight)

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = Tied()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    ids = [torch.randint(2048, (32,), generator=torch.Generator().manual_seed(i)) for i in range(STEPS)]
    plain, plainly = made()
    expected = train(plain, plainly, ids)
    model, optimizer = made()
    within = penstock.autoswap(model, optimizer, budget=least(step, made, tuple(ids)), parameters=True)
    assert train(model, optimizer, ids, within) == expected
    assert same(plain, model)
    assert moved(within, Weight) + moved(within, Gradient) > 0


@pytest.mark.parametrize("are_given", [False, True])
def test_frozen_weights_leave_too(are_given: bool) -> None:
    """And no step brings them back, where the optimizer is given them all the same."""

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model, _ = make()
        for layer in list(model.layers)[:4]:  # type: ignore[arg-type]
            layer.requires_grad_(False)
        given = [parameter for parameter in model.parameters() if parameter.requires_grad or are_given]
        return model, torch.optim.SGD(given, lr=1e-2, momentum=0.9)

    plain, plainly = made()
    expected = train(plain, plainly, inputs())
    model, optimizer = made()
    gone_meanwhile: list[int] = []
    optimizer.register_step_post_hook(lambda *_: gone_meanwhile.append(gone(model)))  # before the block's own
    within = penstock.autoswap(model, optimizer, budget=least(step, made), parameters=True)
    assert train(model, optimizer, inputs(), within) == expected
    assert gone_meanwhile[-1] > 1
    assert same(plain, model)
    assert moved(within, Weight) > 2


IN_POOL = """
import sys
import torch
sys.path.insert(0, {root!r})
import penstock
from penstock.training.movable import Gradient, Weight
from penstock.training.mover import Mover, Place
from tests.training.loops import same, train
from tests.training.parameters import inputs, make, moved
torch.set_num_threads(2)
sys.modules["penstock.training.meter"].read_memory = lambda: None  # the plain loop's heap is in it
plain, plainly = make()
expected = train(plain, plainly, inputs(12))
model, optimizer = make()
within = penstock.autoswap(model, optimizer, budget={budget}, parameters=True)
losses = train(model, optimizer, inputs(12), within)
assert losses == expected and same(plain, model)
assert moved(within, Weight) and moved(within, Gradient), within.plan
assert within.stats.departed == 0
stats = within.pool_stats
assert stats.followed > 10 and stats.taken <= stats.followed // 10, stats
"""


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is installed")
def test_in_the_pool_each_gradient_has_its_planned_places() -> None:
    root = Path(__file__).parents[2]
    code = IN_POOL.format(root=str(root), budget=24 * MIB)
    environment = {**os.environ, "LD_PRELOAD": str(pool.library())}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


class Scaled(torch.autograd.Function):
    """A product that says itself what it saves."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight.t(), x.t() @ gradients[0]


class Layer(nn.Module):
    """A module, which has its own weight when it is called, whatever the plan says."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(768, 768) / 30)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = Scaled.apply(x, self.weight)
        return found


class Mixed(nn.Module):
    """Convolutions, an embedding, and a function of its own; `turn` computes the two last ones the other way round.

    By what autograd saves that is no other iteration.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*(nn.Conv2d(192, 192, 3, padding=1) for _ in range(4)))
        self.embedding = nn.Embedding(1024, 768)
        self.weights = nn.ParameterList([torch.randn(768, 768) / 30])
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.turn = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = self.convolutions(x[:, :768].reshape(-1, 192, 2, 2)).relu().reshape(len(x), 768)
        words = self.embedding((x[:, 0] > 0).long())
        images = Scaled.apply(images + words, self.weights[0])
        for layer in reversed(self.layers) if self.turn else self.layers:
            images = layer(images).tanh()
        return images


@pytest.mark.parametrize("turned", [False, True])
def test_weights_are_there_before_their_function_makes_nodes_for_their_gradients(turned: bool) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Mixed()
        return model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)

    def turn(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.turn = turned

    one = now_and_then(turn)
    plain, plainly = made()
    expected = train(plain, plainly, inputs(11), one=one)
    model, optimizer = made()
    within = penstock.autoswap(model, optimizer, budget=least(step, made), parameters=True)
    assert train(model, optimizer, inputs(11), within, one=one) == expected
    assert same(plain, model)
    assert moved(within, Weight) > 3


def test_with_activations_that_are_computed_again() -> None:
    plain, plainly = make()
    batches = inputs(10, rows=512)
    expected = train(plain, plainly, batches)
    model, optimizer = make()
    within = penstock.autoswap(model, optimizer, budget=26 * MIB, parameters=True, recompute=True)
    assert train(model, optimizer, batches, within) == expected
    assert same(plain, model)
