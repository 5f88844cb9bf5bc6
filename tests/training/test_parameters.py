"""Weights and gradients that leave memory between two uses."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.loops import Tower, failing, same, step, train
from torch import nn
from torch.utils.checkpoint import checkpoint

import penstock
from penstock.errors import StorageError, StreamStateError
from penstock.planning.swap_problem import Link
from penstock.runtime.devices.cpu_queue import CpuArena
from penstock.training import pool, swapfile
from penstock.training.autoswap import AutoSwap
from penstock.training.movable import Gradient, Weight
from penstock.training.mover import Mover, Place

WIDTH, MIB, STEPS = 768, 1 << 20, 9
LINK = Link(1e-5, 1e11)  # whatever helps is worth it

pytestmark = pytest.mark.usefixtures("steady")
One = Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], float]


def make(momentum: float = 0.9) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Parameters of 13 MiB, gradients, and state."""
    torch.manual_seed(0)
    model = Tower(layers=6, width=WIDTH)
    return model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=momentum)


def inputs(count: int = STEPS, rows: int = 64) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(3)
    return [torch.randn(rows, WIDTH, generator=chance) for _ in range(count)]


def moved(swap: AutoSwap, kind: type) -> int:
    """How many of a kind the plan has leave."""
    assert swap.plan is not None
    assert swap.planner is not None
    found = {swap_.storage: swap.planner.movables.get(swap_.storage) for swap_ in swap.plan.swaps}
    return sum(isinstance(movable, kind) for movable in found.values())


def gone(model: nn.Module) -> int:
    return sum(parameter.is_meta for parameter in model.parameters())


def assert_same(
    budget: int, one: One = step, momentum: float = 0.9, batches: list[torch.Tensor] | None = None, departed: int = 0
) -> AutoSwap:
    """Training with and without is the same to the last bit."""
    batches = inputs() if batches is None else batches
    plain, plainly = make(momentum)
    expected = train(plain, plainly, batches, one=one)
    model, optimizer = make(momentum)
    within = penstock.autoswap(model, optimizer, budget=budget, parameters=True)
    assert train(model, optimizer, batches, within, one=one) == expected
    assert same(plain, model)
    for first, second in zip(plainly.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first if first[name] is not None)
    assert not gone(model)
    assert within.stats.departed == departed
    return within


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


def least(
    one: One = step,
    made: Callable[[], tuple[nn.Module, torch.optim.Optimizer]] = make,
    batches: list[torch.Tensor] | None = None,
) -> int:
    """The smallest budget in which a loop trains, as a smaller one is refused."""
    model, optimizer = made()
    with (
        pytest.raises(penstock.BudgetInfeasibleError, match="set one of") as caught,
        penstock.autoswap(model, optimizer, budget=MIB, parameters=True),
    ):
        train(model, optimizer, inputs() if batches is None else batches, one=one)
    assert not gone(model)
    assert caught.value.needed_nbytes is not None
    return caught.value.needed_nbytes


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
    within = penstock.autoswap(model, optimizer, budget=least(step, made, ids), parameters=True)
    assert train(model, optimizer, ids, within) == expected
    assert same(plain, model)
    assert moved(within, Weight) + moved(within, Gradient) > 0


def now_and_then(what: Callable[[nn.Module, torch.optim.Optimizer], object]) -> One:
    """Does something after the eighth step only, when all is planned for."""
    steps: dict[int, int] = {}

    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        loss = step(model, optimizer, x)
        steps[id(model)] = steps.get(id(model), 0) + 1
        if steps[id(model)] == 8:
            what(model, optimizer)
        return loss

    return one


def load_other(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.load_state_dict(make()[0].state_dict())


def evaluate_once(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        assert torch.isfinite(model(inputs(1)[0])).all()


def evaluate_a_part_with_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    assert torch.isfinite(model.layers[5](inputs(1)[0])).all()  # type: ignore[index]


def give_other_data(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for layer in model.layers:  # type: ignore[union-attr]
        layer.weight.data = torch.full((WIDTH, WIDTH), 1e-3)


@pytest.mark.parametrize("what", [load_other, evaluate_once, give_other_data])
def test_what_happens_between_iterations(what: Callable[[nn.Module, torch.optim.Optimizer], object]) -> None:
    assert_same(20 * MIB, now_and_then(what), batches=inputs(11))


def test_a_part_is_evaluated_with_gradients() -> None:
    one = now_and_then(evaluate_a_part_with_gradients)
    assert_same(20 * MIB, one, batches=inputs(11), departed=1)


def test_a_module_that_reads_the_weights_of_those_within_it() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.within = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.within:
                x = nn.functional.linear(x, layer.weight, layer.bias).tanh()  # type: ignore[arg-type]
            return x

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Outer()
        return model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)

    one, batches = now_and_then(evaluate_once), inputs(12)
    batches[10] = batches[10][:5]  # and so has one that departs
    plain, plainly = made()
    expected = train(plain, plainly, batches, one=one)
    model, optimizer = made()
    within = penstock.autoswap(model, optimizer, budget=least(step, made), parameters=True)
    assert train(model, optimizer, batches, within, one=one) == expected
    assert moved(within, Weight) > 0
    assert within.stats.departed == 1


def test_a_state_dict_has_the_weights_that_are_away() -> None:
    model, optimizer = make()
    plain, plainly = make()
    train(plain, plainly, inputs(8))
    with penstock.autoswap(model, optimizer, budget=20 * MIB, parameters=True):
        train(model, optimizer, inputs(8))
        assert gone(model) > 0
        found = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(found[name], value) for name, value in plain.state_dict().items())


def test_what_is_away_cannot_be_read() -> None:
    model, optimizer = make()
    with penstock.autoswap(model, optimizer, budget=20 * MIB, parameters=True):
        train(model, optimizer, inputs(8))
        away = next(parameter for parameter in model.parameters() if parameter.is_meta)
        for read in (away.sum, away.norm, away.tolist, lambda: away @ away):
            with torch.no_grad(), pytest.raises((RuntimeError, NotImplementedError)):
                torch.zeros(1).copy_(read())
    assert not away.is_meta


def test_a_short_last_batch_and_others_after_it() -> None:
    batches = inputs(14)
    batches[9] = batches[9][:5]
    within = assert_same(20 * MIB, batches=batches, departed=1)
    assert within.stats.iterations >= 5


def test_a_step_that_is_left_out_drops_gradients_that_are_away() -> None:
    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        if x is not left_out:
            return step(model, optimizer, x)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        return 0.0

    batches = inputs(12)
    left_out = batches[8]
    assert_same(20 * MIB, one, batches=batches, departed=1)


def test_hooks_of_the_users_are_called_as_often() -> None:
    counts: list[dict[str, int]] = []

    def watched() -> tuple[nn.Module, torch.optim.Optimizer]:
        model, optimizer = make()
        found = {"gradient": 0, "accumulated": 0}
        counts.append(found)

        def seen(gradient: torch.Tensor) -> None:
            found["gradient"] += 1

        def done(parameter: torch.Tensor) -> None:
            found["accumulated"] += 1

        for parameter in model.parameters():
            parameter.register_hook(seen)
            parameter.register_post_accumulate_grad_hook(done)
        return model, optimizer

    train(*watched(), inputs())
    model, optimizer = watched()
    train(model, optimizer, inputs(), penstock.autoswap(model, optimizer, budget=20 * MIB, parameters=True))
    assert counts[0] == counts[1]


def test_a_weight_that_somebody_else_holds_stays() -> None:
    model, optimizer = make()
    plain, plainly = make()
    expected = train(plain, plainly, inputs(12))
    held = model.layers[2].weight.data  # type: ignore[union-attr,index]
    assert isinstance(held, torch.Tensor)
    within = penstock.autoswap(model, optimizer, budget=26 * MIB, parameters=True)
    assert train(model, optimizer, inputs(12), within) == expected
    assert torch.equal(held, plain.layers[2].weight)  # type: ignore[arg-type,union-attr,index]


def test_parameters_that_share_memory_stay() -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model, _ = make()
        model.layers[1].weight = nn.Parameter(model.layers[0].weight.data)  # type: ignore[union-attr,index]
        return model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)

    plain, plainly = made()
    expected = train(plain, plainly, inputs())
    model, optimizer = made()
    within = penstock.autoswap(model, optimizer, budget=26 * MIB, parameters=True)
    assert train(model, optimizer, inputs(), within) == expected
    assert same(plain, model)


def test_frozen_weights_leave_too() -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model, _ = make()
        for layer in list(model.layers)[:4]:  # type: ignore[arg-type]
            layer.requires_grad_(False)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return model, torch.optim.SGD(trained, lr=1e-2, momentum=0.9)

    plain, plainly = made()
    expected = train(plain, plainly, inputs())
    model, optimizer = made()
    within = penstock.autoswap(model, optimizer, budget=least(step, made), parameters=True)
    assert train(model, optimizer, inputs(), within) == expected
    assert same(plain, model)
    assert moved(within, Weight) > 2


def test_weights_that_cannot_be_written_stay(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, plainly = make()
    expected = train(plain, plainly, inputs(12))
    model, optimizer = make()
    with penstock.autoswap(model, optimizer, budget=20 * MIB, parameters=True):
        found = train(model, optimizer, inputs(12)[:8])
        monkeypatch.setattr(swapfile.os, "pwritev", failing)
        with caplog.at_level(logging.WARNING, logger="penstock"):
            found += train(model, optimizer, inputs(12)[8:])
    assert found == expected
    assert same(plain, model)
    assert "training goes on" in caplog.text


def test_weights_that_cannot_be_read_raise_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make()
    batches = inputs(10)
    plain, plainly = make()
    train(plain, plainly, batches)
    with penstock.autoswap(model, optimizer, budget=least(), parameters=True):
        train(model, optimizer, batches[:8])
        with monkeypatch.context() as patch:
            patch.setattr(swapfile.os, "preadv", failing)
            with pytest.raises(StorageError, match="reading"):
                model(batches[8]).sum().backward()
        optimizer.zero_grad()
        train(model, optimizer, batches[8:])
    assert same(plain, model)


IN_POOL = """
import sys
import torch
sys.path.insert(0, {root!r})
import penstock
from penstock.training.movable import Gradient, Weight
from penstock.training.mover import Mover, Place
from tests.training.loops import same, train
from tests.training.test_parameters import inputs, make, moved
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


def test_another_plan_that_has_them_away_at_other_times() -> None:
    batches = inputs(14)
    plain, plainly = make()
    expected = train(plain, plainly, batches)
    model, optimizer = make()
    with penstock.autoswap(model, optimizer, budget=least(), parameters=True) as within:
        losses = train(model, optimizer, batches[:8])
        assert within._following is not None
        for more in (1, 2, 3):
            within._following.planner.correct(-4 * more * MIB)  # so much more is free
            within._following.begin()
            losses += train(model, optimizer, batches[6 + 2 * more : 8 + 2 * more])
    assert losses == expected
    assert same(plain, model)


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


class Mixed(nn.Module):
    """Convolutions, an embedding, and a function of its own; `turn` computes the two last ones the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*(nn.Conv2d(192, 192, 3, padding=1) for _ in range(4)))
        self.embedding = nn.Embedding(1024, 768)
        self.weights = nn.ParameterList(torch.randn(768, 768) / 30 for _ in range(3))
        self.turn = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = self.convolutions(x[:, :768].reshape(-1, 192, 2, 2)).relu().reshape(len(x), 768)
        words = self.embedding((x[:, 0] > 0).long())
        first, *others = self.weights
        images = Scaled.apply(images + words, first)
        for weight in reversed(others) if self.turn else others:
            images = Scaled.apply(images, weight).tanh()
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


def test_what_is_on_its_way_out_cannot_be_written_to(tmp_path: Path) -> None:
    """Not even by ways of which torch counts no version."""
    parameter = nn.Parameter(torch.randn(512, 512))
    expected = parameter.detach().clone()
    mover = Mover(swapfile.SwapFile(tmp_path))
    weight = Weight(parameter, parameter.nbytes, {})
    weight.allot(mover)
    kept = weight.saved(parameter.detach().t())
    room_nbytes = 2 * parameter.nbytes
    assert weight.leave(mover, Place(CpuArena(room_nbytes), 0, room_nbytes)) is not None
    with pytest.raises(RuntimeError):
        parameter.data.mul_(2)
    assert torch.equal(kept.take()[0], expected.t())
    weight.bring()
    assert torch.equal(parameter, expected)
    mover.close()


def evaluate_in_inference_mode(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.inference_mode():
        assert torch.isfinite(model(inputs(1)[0])).all()


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def copy_the_model(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    other = copy.deepcopy(model)
    assert same_weights(model, other)
    with torch.no_grad():
        assert torch.isfinite(other(inputs(1)[0])).all()


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("what", [evaluate_in_inference_mode, load_optimizer, copy_the_model])
def test_what_else_happens_between_iterations(what: Callable[[nn.Module, torch.optim.Optimizer], object]) -> None:
    assert_same(least(), now_and_then(what), batches=inputs(12))


@pytest.mark.parametrize("way", ["data", "itself"])
def test_what_is_away_cannot_be_written_to_in_silence(way: str) -> None:
    """torch ignores copies into tensors without data."""
    model, optimizer = make()
    within = penstock.autoswap(model, optimizer, budget=20 * MIB, parameters=True)
    with torch.no_grad(), contextlib.suppress(StreamStateError), within:
        with torch.enable_grad():
            train(model, optimizer, inputs(8))
        away = next(parameter for parameter in model.parameters() if parameter.is_meta)
        with pytest.raises(RuntimeError):
            (away.data if way == "data" else away).copy_(torch.zeros(WIDTH, WIDTH))
    assert not away.is_meta


def test_gradients_that_somebody_collects_come_back_to_him() -> None:
    kept: dict[int, list[torch.Tensor]] = {}

    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        optimizer.zero_grad()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        kept[id(model)] = [gradient for gradient in gradients if gradient is not None]
        optimizer.step()
        return float(loss.detach())

    assert_same(least(one), one)
    first, second = kept.values() if len(kept) == 2 else list(kept.values())[-2:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_whoever_asks_for_the_device_is_told_it() -> None:
    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        devices = {parameter.device.type for parameter in model.parameters()}
        assert devices == {"cpu"}
        return step(model, optimizer, x)

    within = assert_same(34 * MIB, one)
    assert within.stats.iterations >= 3


def test_a_graph_that_outlives_the_block_has_its_weights() -> None:
    model, optimizer = make()
    plain, plainly = make()
    train(plain, plainly, inputs(8))
    plain(inputs(1)[0]).square().mean().backward()
    with penstock.autoswap(model, optimizer, budget=least(), parameters=True):
        train(model, optimizer, inputs(8))
        loss = model(inputs(1)[0]).square().mean()
    loss.backward()
    assert same(plain, model)


def test_with_activations_that_are_computed_again() -> None:
    plain, plainly = make()
    batches = inputs(10, rows=512)
    expected = train(plain, plainly, batches)
    model, optimizer = make()
    within = penstock.autoswap(model, optimizer, budget=26 * MIB, parameters=True, recompute=True)
    assert train(model, optimizer, batches, within) == expected
    assert same(plain, model)


def test_an_exception_in_the_middle_of_a_pass() -> None:
    class Interrupted(Exception):
        pass

    def stop(module: nn.Module, inputs: Any) -> None:
        raise Interrupted

    model, optimizer = make()
    plain, plainly = make()
    batches = inputs(12)
    expected = train(plain, plainly, batches)
    with penstock.autoswap(model, optimizer, budget=least(), parameters=True):
        losses = train(model, optimizer, batches[:8])
        for layer in (1, 4):
            handle = model.layers[layer].register_forward_pre_hook(stop)  # type: ignore[union-attr,index]
            with pytest.raises(Interrupted):
                step(model, optimizer, batches[8])
            handle.remove()
        losses += train(model, optimizer, batches[8:])
    assert losses == expected
    assert same(plain, model)


def lone() -> tuple[nn.Parameter, Weight, Place]:
    parameter = nn.Parameter(torch.randn(512, 512))
    room_nbytes = 2 * parameter.nbytes
    return parameter, Weight(parameter, parameter.nbytes, {}), Place(CpuArena(room_nbytes), 0, room_nbytes)


def test_a_weight_moves_to_its_place() -> None:
    parameter, weight, place = lone()
    expected, before = parameter.detach().clone(), parameter.data_ptr()
    weight.move_to(place)
    assert parameter.data_ptr() != before
    assert parameter.data_ptr() % 4096 == before % 4096
    assert torch.equal(parameter, expected)
    assert weight.has(parameter.untyped_storage())
    assert place.room(1) is None
    (parameter * 2).sum().backward()
    assert torch.equal(parameter.grad, torch.full((512, 512), 2.0))  # type: ignore[arg-type]


def test_a_weight_that_somebody_shares_does_not_move() -> None:
    parameter, weight, place = lone()
    shared = parameter.data
    weight.move_to(place)
    shared.fill_(3)
    assert (parameter == 3).all()
    assert place.room(1) is not None
