"""Activations that are computed again where no gap hides a transfer: the same to the last bit."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from collections.abc import Callable

import pytest
import torch
from tests.training.loops import same, step, train
from torch import nn

import penstock
from penstock.errors import StreamStateError
from penstock.planning.swap_problem import Link
from penstock.training.autoswap import AutoSwap
from penstock.training.recipes import Recipes
from penstock.training.recompute import REPEATED, geometry
from penstock.training.tape import SAVED, STEP_ENDED, TAKEN, Event, Recorder, Tape

MIB = 1 << 20
aten = torch.ops.aten


def x() -> torch.Tensor:
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(1))


MAKING: dict[object, Callable[[torch.Tensor], torch.Tensor]] = {
    aten.gelu.default: lambda a: nn.functional.gelu(a, approximate="tanh"),
    aten.relu.default: torch.relu,
    aten.silu.default: nn.functional.silu,
    aten.tanh.default: torch.tanh,
    aten.sigmoid.default: torch.sigmoid,
    aten.leaky_relu.default: lambda a: nn.functional.leaky_relu(a, 0.3),
    aten.exp.default: torch.exp,
    aten.neg.default: torch.neg,
    aten.mul.Tensor: lambda a: a * 0.3,
    aten.add.Tensor: lambda a: torch.add(a, a[:1], alpha=2),
    aten.sub.Tensor: lambda a: a - a[:1],
    aten.div.Tensor: lambda a: a / 3,
    aten.pow.Tensor_Scalar: lambda a: a**3.0,
    aten._softmax.default: lambda a: a.softmax(-1),
    aten.native_layer_norm.default: lambda a: nn.functional.layer_norm(a, (32,), weight=a[0] + 1),
    aten.native_batch_norm.default: lambda a: nn.functional.batch_norm(
        a, torch.zeros(32), torch.ones(32), training=True
    ),
}


def taped(make: Callable[[torch.Tensor], torch.Tensor], after: Callable[..., object] = lambda a, b: None) -> Tape:
    """One iteration that saves what is read and what is made of it, and takes both back."""
    recorder = Recorder()
    with recorder, torch.no_grad():
        recorder.event(Event(STEP_ENDED))
        source = x()
        recorder.event(Event(SAVED, source.nbytes), source.untyped_storage())
        made = make(source)
        recorder.event(Event(SAVED, made.nbytes), made.untyped_storage())
        after(source, made)
        for tensor in (made, source):
            recorder.event(Event(TAKEN, tensor.nbytes), tensor.untyped_storage())
        recorder.event(Event(STEP_ENDED))
        del source, made, tensor
    return recorder.tape()


@pytest.mark.parametrize("operation", MAKING, ids=str)
def test_every_operation_gives_the_same_bits_again(operation: object) -> None:
    assert operation in REPEATED
    make = MAKING[operation]
    tape = taped(make)
    record = next(record for record in tape.storages if record.saves == [2])
    recipe = Recipes(tape, 1).find(record, 3)
    assert recipe is not None
    expected = make(x())
    into = torch.full_like(expected, torch.nan)
    found = recipe.compute(
        lambda source: x() if source.where == geometry(x()) else x().as_strided(*source.where[1:3]), into
    )
    assert found is into
    assert torch.equal(found, expected)


def test_all_of_them_are_tried() -> None:
    assert set(MAKING) == set(REPEATED)


@pytest.mark.parametrize(
    ("make", "after"),
    [
        (lambda a: nn.functional.dropout(a, 0.5), lambda a, b: None),  # chance
        (lambda a: a @ a.t(), lambda a, b: None),  # its bits depend on addresses
        (torch.relu, lambda a, b: a.mul_(2)),  # what it was made of is not there any more
        (torch.relu, lambda a, b: b.mul_(2)),  # it is something else by now
        (lambda a: torch.relu(a + torch.randn(64, 32)), lambda a, b: None),
    ],
)
def test_what_would_come_out_otherwise_is_not_computed_again(
    make: Callable[[torch.Tensor], torch.Tensor], after: Callable[..., object]
) -> None:
    tape = taped(make, after)
    record = next(record for record in tape.storages if 2 in record.saves)
    assert Recipes(tape, 1).find(record, 3) is None


def test_what_is_made_by_several_operations_is_made_by_all_of_them_again() -> None:
    tape = taped(lambda a: torch.tanh(a * 2 + 1))
    record = next(record for record in tape.storages if record.saves == [2])
    recipe = Recipes(tape, 1).find(record, 3)
    assert recipe is not None
    assert [source.saved for source in recipe.sources()] == [0]
    assert torch.equal(recipe.compute(lambda source: x()), torch.tanh(x() * 2 + 1))
    assert Recipes(taped(lambda a: a * 2), 1).find(tape.storages[0], 3) is None


class Gated(nn.Module):
    """Layers whose activations are cheap to compute again, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(5))
        self.norm = nn.BatchNorm1d(64)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            a = torch.tanh(self.norm(torch.relu(layer(a))) * 1.5) + a
        return a


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Gated()
    return model, torch.optim.SGD(model.parameters(), lr=1e-2)


def batches(count: int) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(7)
    return [torch.randn(8192, 64, generator=chance) for _ in range(count)]


@pytest.fixture(autouse=True)
def _slow_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """So slow that computing again is better."""
    monkeypatch.setattr(sys.modules["penstock.training.meter"], "read_memory", lambda: None)
    link = Link(0.1, 1e7)
    monkeypatch.setattr(sys.modules["penstock.training.planner"], "measure_links", lambda folder: (link, link))


def within(model: nn.Module, optimizer: torch.optim.Optimizer, budget: int = 40 * MIB) -> AutoSwap:
    return penstock.autoswap(model, optimizer, budget=budget, recompute=True)


def test_training_computes_again_and_is_the_same_to_the_last_bit() -> None:
    plain, plainly = make()
    expected = train(plain, plainly, batches(9))
    model, optimizer = make()
    swap = within(model, optimizer)
    assert train(model, optimizer, batches(9), swap) == expected
    assert same(plain, model)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), model.buffers(), strict=True))
    assert swap.plan is not None
    again = [found for found in swap.plan.swaps if found.recompute_seconds is not None]
    assert again
    assert swap.plan.recomputed_nbytes == sum(found.nbytes for found in again)
    assert swap.stats.recompute_seconds > 0
    assert swap.stats.departed == 0
    assert "computed again" in swap.explain()


def test_an_iteration_that_departs_still_computes_what_was_given_up(caplog: pytest.LogCaptureFixture) -> None:
    def one(model: nn.Module, optimizer: torch.optim.Optimizer, a: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = model(a).square().mean()
        if a is odd:
            loss = loss + model.get_parameter("layers.0.weight").square().sum()
        loss.backward()
        if a is odd:
            model(a).sum().backward()
        optimizer.step()
        return float(loss.detach())

    given = batches(11)
    odd = given[8]
    plain, plainly = make()
    expected = train(plain, plainly, given, one=one)
    model, optimizer = make()
    swap = within(model, optimizer)
    with caplog.at_level(logging.WARNING, logger="penstock"):
        assert train(model, optimizer, given, swap, one=one) == expected
    assert same(plain, model)
    assert swap.stats.departed == 1
    assert swap.stats.recompute_seconds > 0


def test_a_source_that_was_mutated_raises_as_in_torch() -> None:
    model, optimizer = make()
    given = batches(9)
    with within(model, optimizer) as swap:
        train(model, optimizer, given[:8])
        assert swap.stats.recompute_seconds > 0
        kept: list[torch.Tensor] = []
        handle = model.get_submodule("norm").register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
        loss = model(given[8]).square().mean()
        handle.remove()
        with torch.no_grad():
            kept[2].add_(1)
        kept.clear()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        optimizer.zero_grad()
    assert step(model, optimizer, given[8]) >= 0


def test_what_does_not_come_out_the_same_raises_before_any_weight_is_changed() -> None:
    """A factor that changes is no event: nothing but the result tells."""
    model, optimizer = make()
    given = batches(9)
    forward = Gated.forward
    with within(model, optimizer, 28 * MIB) as swap:
        train(model, optimizer, given[:8])
        assert swap.stats.recompute_seconds > 0
        before = [parameter.detach().clone() for parameter in model.parameters()]

        def annealed(self: Gated, a: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                a = torch.tanh(self.norm(torch.relu(layer(a))) * 1.25) + a
            return a

        try:
            Gated.forward = annealed  # type: ignore[method-assign]
            with pytest.raises(StreamStateError, match="not what it was"):
                step(model, optimizer, given[8])
        finally:
            Gated.forward = forward  # type: ignore[method-assign]
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_without_asking_nothing_is_computed_again() -> None:
    model, optimizer = make()
    with penstock.autoswap(model, optimizer, budget=40 * MIB) as swap:
        train(model, optimizer, batches(6))
    assert swap.plan is not None
    assert swap.plan.swaps
    assert swap.plan.recomputed_nbytes == 0


def test_parameters_are_not_held_by_what_was_recorded() -> None:
    model, optimizer = make()
    with within(model, optimizer):
        train(model, optimizer, batches(6))
    kept = [weakref.ref(parameter.untyped_storage()) for parameter in model.parameters()]
    del model, optimizer
    gc.collect()
    assert all(reference() is None for reference in kept)


def test_what_a_graph_still_needs_after_the_block_is_computed_then() -> None:
    model, optimizer = make()
    given = batches(9)
    with within(model, optimizer):
        train(model, optimizer, given[:8])
        optimizer.zero_grad()
        loss = model(given[8]).square().mean()
    loss.backward()
    plain, plainly = make()
    train(plain, plainly, given[:8])
    plainly.zero_grad()
    plain(given[8]).square().mean().backward()
    assert same(plain, model)
