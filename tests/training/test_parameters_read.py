"""Who looks at weights and gradients that may be away, and when."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from tests.training.loops import same, step, train
from tests.training.parameters import (
    FAST,
    MIB,
    WIDTH,
    assert_same,
    evaluate_once,
    gone,
    inputs,
    least,
    make,
    moved,
    now_and_then,
)
from torch import nn

import penstock
from penstock.errors import StreamStateError
from penstock.training.movable import Weight

LINK = FAST

pytestmark = pytest.mark.usefixtures("steady")


def load_other(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.load_state_dict(make()[0].state_dict())


def evaluate_a_part_with_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    assert torch.isfinite(model.layers[5](inputs(1)[0])).all()  # type: ignore[index]


def give_other_data(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for layer in model.layers:  # type: ignore[union-attr]
        layer.weight.data = torch.full((WIDTH, WIDTH), 1e-3)


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


@pytest.mark.parametrize("what", [load_other, evaluate_once, give_other_data])
def test_what_happens_between_iterations(what: Callable[[nn.Module, torch.optim.Optimizer], object]) -> None:
    assert_same(20 * MIB, now_and_then(what), batches=inputs(11))


@pytest.mark.parametrize("what", [evaluate_in_inference_mode, load_optimizer, copy_the_model])
def test_what_else_happens_between_iterations(what: Callable[[nn.Module, torch.optim.Optimizer], object]) -> None:
    assert_same(least(), now_and_then(what), batches=inputs(12))


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
