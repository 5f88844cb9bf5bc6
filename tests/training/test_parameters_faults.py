"""Weights and gradients that may be away, where something departs or fails."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.loops import failing, same, step, train
from tests.training.parameters import (
    FAST,
    MIB,
    assert_same,
    inputs,
    least,
    make,
)
from torch import nn

import penstock
from penstock.errors import StorageError
from penstock.runtime.devices.cpu_queue import CpuArena
from penstock.training import swapfile
from penstock.training.movable import Weight
from penstock.training.mover import Mover, Place

LINK = FAST

pytestmark = pytest.mark.usefixtures("steady")


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


def test_another_plan_that_has_them_away_at_other_times() -> None:
    batches = inputs(14)
    plain, plainly = make()
    expected = train(plain, plainly, batches)
    model, optimizer = make()
    with penstock.autoswap(model, optimizer, budget=least(), parameters=True) as within:
        losses = train(model, optimizer, batches[:8])
        assert within._following is not None
        for more in (1, 2, 3):
            within._following.planner._beside_nbytes = -4 * more * MIB  # so much more is free
            within._following.begin()
            losses += train(model, optimizer, batches[6 + 2 * more : 8 + 2 * more])
    assert losses == expected
    assert same(plain, model)


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
