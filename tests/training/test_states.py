"""Optimizer state that leaves memory between two steps."""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any

import pytest
import torch
from tests.training.loops import Tower, failing, same, step, train
from torch import nn
from torch.optim import sgd

import penstock
from penstock.errors import StorageError
from penstock.training import swapfile
from penstock.training.autoswap import AutoSwap

WIDTH, MIB = 512, 1 << 20
BUDGET = 30 * MIB  # parameters and gradients are 14 MiB, and so is the state

pytestmark = pytest.mark.usefixtures("steady")


def make(kind: str = "adam") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Tower(layers=6, width=WIDTH)
    if kind == "adam":
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)
    return model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)


def inputs(count: int, rows: int = 1024) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(3)
    return [torch.randn(rows, WIDTH, generator=chance) for _ in range(count)]


def away(swap: AutoSwap) -> int:
    assert swap.plan is not None
    assert swap.iteration is not None
    return sum(swap_.storage >= len(swap.iteration.events) for swap_ in swap.plan.swaps)


@pytest.mark.parametrize("kind", ["adam", "momentum"])
def test_training_is_the_same_to_the_last_bit_and_state_leaves(kind: str) -> None:
    plain, plainly = make(kind)
    expected = train(plain, plainly, inputs(9))
    model, optimizer = make(kind)
    within = penstock.autoswap(model, optimizer, budget=BUDGET if kind == "momentum" else BUDGET + 4 * MIB)
    assert train(model, optimizer, inputs(9), within) == expected
    assert same(plain, model)
    assert away(within) > 0
    assert within.stats.iterations >= 3
    assert within.stats.departed == 0
    assert same_state(plainly, optimizer)


def same_state(first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> bool:
    """Whether two optimizers are in the same state, to the last bit."""
    pairs = zip(first.state_dict()["state"].values(), second.state_dict()["state"].values(), strict=True)
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)


def test_state_that_is_away_cannot_be_read_but_the_state_dict_can() -> None:
    plain, plainly = make("momentum")
    train(plain, plainly, inputs(8))
    expected = [value["momentum_buffer"].clone() for value in plainly.state_dict()["state"].values()]
    model, optimizer = make("momentum")
    batches = inputs(9)
    with penstock.autoswap(model, optimizer, budget=BUDGET) as within:
        train(model, optimizer, batches[:8])
        assert away(within) > 0
        optimizer.zero_grad()
        loss = model(batches[8]).square().mean()
        raised = 0
        for value in optimizer.state.values():
            try:
                value["momentum_buffer"].sum()
            except (RuntimeError, NotImplementedError):
                raised += 1
        assert raised > 0
        found = [value["momentum_buffer"].clone() for value in optimizer.state_dict()["state"].values()]
        loss.backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    train(plain, plainly, batches[8:])
    assert same(plain, model)


def test_a_step_that_is_left_out() -> None:
    """As a gradient scaler leaves it out, where a gradient is not finite."""

    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        if x is not left_out[0]:
            return step(model, optimizer, x)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        return 0.0

    batches = inputs(12)
    left_out = [batches[8]]
    plain, plainly = make("momentum")
    expected = train(plain, plainly, batches, one=one)
    model, optimizer = make("momentum")
    within = penstock.autoswap(model, optimizer, budget=BUDGET)
    assert train(model, optimizer, batches, within, one=one) == expected
    assert same(plain, model)
    assert same_state(plainly, optimizer)
    assert within.stats.departed == 1


def test_state_that_is_loaded_anew_counts(caplog: pytest.LogCaptureFixture) -> None:
    plain, plainly = make("momentum")
    model, optimizer = make("momentum")
    batches = inputs(12)
    train(plain, plainly, batches[:8])
    kept = copy.deepcopy(plainly.state_dict())  # loading does not copy
    plainly.load_state_dict(copy.deepcopy(kept))
    train(plain, plainly, batches[8:])
    with caplog.at_level(logging.WARNING, logger="penstock"), penstock.autoswap(model, optimizer, budget=BUDGET):
        train(model, optimizer, batches[:8])
        optimizer.load_state_dict(copy.deepcopy(kept))
        train(model, optimizer, batches[8:])
    assert same(plain, model)
    assert same_state(plainly, optimizer)
    assert "loaded anew" in caplog.text


def test_state_that_cannot_be_read_raises_before_any_weight_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make("momentum")
    batches = inputs(9)
    with penstock.autoswap(model, optimizer, budget=BUDGET):
        train(model, optimizer, batches[:8])
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with monkeypatch.context() as patch:
            patch.setattr(swapfile.os, "preadv", failing)
            with pytest.raises(StorageError, match="reading"):
                step(model, optimizer, batches[8])
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        step(model, optimizer, batches[8])  # also where reads that failed meanwhile had begun ahead
    plain, plainly = make("momentum")
    train(plain, plainly, batches)
    assert same(plain, model)


def test_a_second_block_on_the_same_optimizer_has_state_leave_again() -> None:
    model, optimizer = make("momentum")
    gone = []
    blocks = [penstock.autoswap(model, optimizer, budget=BUDGET) for _ in range(2)]
    for within in blocks:  # which somebody keeps, to look at what they did
        train(model, optimizer, inputs(8), within)
        gone.append(away(within))
    assert all(gone)
    assert all(not state["momentum_buffer"].is_meta for state in optimizer.state.values())


def test_after_a_checkpoint_state_is_away_again_before_the_next_iteration_goes_on() -> None:
    model, optimizer = make("momentum")
    batches = inputs(10)
    with penstock.autoswap(model, optimizer, budget=BUDGET) as within:
        train(model, optimizer, batches[:8])
        before = sum(state["momentum_buffer"].is_meta for state in optimizer.state.values())
        optimizer.state_dict()
        assert not any(state["momentum_buffer"].is_meta for state in optimizer.state.values())
        loss = model(batches[8]).square().mean()
        assert sum(state["momentum_buffer"].is_meta for state in optimizer.state.values()) >= before > 0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        train(model, optimizer, batches[9:])
        assert within.stats.departed == 0


def test_a_read_that_fails_in_the_middle_of_a_step_says_what_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make("momentum")
    batches = inputs(10)
    with penstock.autoswap(model, optimizer, budget=27 * MIB) as within:
        train(model, optimizer, batches[:8])
        assert away(within) > 3
        read, update, offsets, is_stepped = swapfile.os.preadv, sgd.sgd, [], threading.Event()

        def noted(descriptor: int, pieces: Any, offset: int) -> int:
            offsets.append(offset)
            return read(descriptor, pieces, offset)

        def the_last_fails_late(descriptor: int, pieces: Any, offset: int) -> int:
            if offset != offsets[-1]:
                return read(descriptor, pieces, offset)
            assert is_stepped.wait(60), "no part was stepped while a later one's state was read"
            return failing()

        def updated(*arguments: Any, **more: Any) -> None:
            update(*arguments, **more)
            is_stepped.set()

        with monkeypatch.context() as patch:
            patch.setattr(swapfile.os, "preadv", noted)
            step(model, optimizer, batches[8])
            patch.setattr(swapfile.os, "preadv", the_last_fails_late)
            patch.setattr(sgd, "sgd", updated)
            with pytest.raises(StorageError, match="reading") as caught:
                step(model, optimizer, batches[9])
    assert any("checkpoint" in note for note in caught.value.__notes__)
