"""What goes wrong in training within a budget: refused, or right all the same."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.loops import (
    MIB,
    ROWS,
    WIDTH,
    batches,
    failing,
    make,
    same,
    step,
    swap,
    train,
)
from torch import nn

from penstock.errors import BudgetError, BudgetInfeasibleError, PlanError, StorageError, StreamStateError
from penstock.training import swapfile, swapper
from penstock.training.meter import Meter

pytestmark = pytest.mark.usefixtures("steady")


def test_data_dependent_shapes_go_on_unswapped_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = make()
    with caplog.at_level(logging.WARNING, logger="penstock"), swap(model, optimizer) as within:
        for index in range(14):
            step(model, optimizer, torch.ones(ROWS + index, WIDTH))
    assert within.plan is None
    assert "no two iterations" in caplog.text
    assert "nothing is planned" in within.explain()


def test_a_budget_that_cannot_work_is_refused_with_the_least_that_can() -> None:
    model, optimizer = make()
    with pytest.raises(BudgetInfeasibleError) as caught:
        train(model, optimizer, batches(6), swap(model, optimizer, budget=4 * MIB))
    model, optimizer = make()
    within = swap(model, optimizer, budget=caught.value.needed_nbytes)
    train(model, optimizer, batches(6), within)
    assert within.stats.iterations


def test_the_least_that_can_work_includes_what_was_measured_beside_storages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "taken_nbytes", lambda self: 50 * MIB)
    model, optimizer = make()
    with pytest.raises(BudgetInfeasibleError) as caught:
        train(model, optimizer, batches(6), swap(model, optimizer, budget=8 * MIB))
    assert caught.value.needed_nbytes > 20 * MIB
    model, optimizer = make()
    within = swap(model, optimizer, budget=caught.value.needed_nbytes)
    monkeypatch.setattr(Meter, "taken_nbytes", lambda self: 50 * MIB if within.plan is None else 0)
    train(model, optimizer, batches(7), within)
    assert within.stats.iterations


def test_a_failure_at_the_end_loses_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []
    model, optimizer = make()
    block = swap(model, optimizer, budget=24 * MIB)

    def last(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        if len(x) == ROWS:
            return step(model, optimizer, x)
        kept.append(model(torch.ones(ROWS, WIDTH)).square().mean())
        monkeypatch.setattr(swapfile.os, "preadv", failing)
        return 0.0

    with pytest.raises(StorageError, match="reading"):
        train(model, optimizer, [*batches(7), torch.ones(1, WIDTH)], block, one=last)
    with pytest.raises(StorageError):  # and no hang
        kept[0].backward()


def test_a_folder_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(swapfile.os, "posix_fallocate", full)
    model, optimizer = make()
    with pytest.raises(StorageError, match="No space left"):
        train(model, optimizer, batches(6), swap(model, optimizer, offload_folder=tmp_path))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    model, optimizer = make()
    with pytest.raises(StorageError, match="missing"):
        train(model, optimizer, batches(6), swap(model, optimizer, offload_folder=tmp_path / "missing"))


def test_writing_that_fails_leaves_everything_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, plainly = make()
    expected = train(plain, plainly, batches(9))
    model, optimizer = make()
    inputs = list(batches(9))
    with swap(model, optimizer) as within:
        losses = [step(model, optimizer, x) for x in inputs[:5]]
        monkeypatch.setattr(swapfile.os, "pwritev", failing)
        with caplog.at_level(logging.WARNING, logger="penstock"):
            losses += [step(model, optimizer, x) for x in inputs[5:]]
    assert losses == expected
    assert same(plain, model)
    assert "everything in memory" in caplog.text
    assert within.stats.iterations >= 4


def test_reading_that_fails_raises_before_any_weight_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make()
    with swap(model, optimizer):
        for x in batches(5):
            step(model, optimizer, x)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with monkeypatch.context() as patch:
            patch.setattr(swapfile.os, "preadv", failing)
            with pytest.raises(StorageError, match="reading"):
                step(model, optimizer, torch.ones(ROWS, WIDTH))
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        step(model, optimizer, torch.ones(ROWS, WIDTH))  # it works again


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"budget": "lots"}, BudgetError),
        ({"budget": 0}, BudgetError),
        ({"scores": "luck"}, PlanError),
        ({"optimizer": []}, StreamStateError),
        ({"optimizer": [1]}, StreamStateError),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    model, optimizer = make()
    with pytest.raises(error):
        swap(model, arguments.pop("optimizer", optimizer), **arguments)


def test_a_read_that_fails_as_an_iteration_ends_leaves_the_next_ones_as_they_should_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, plainly = make()
    train(plain, plainly, batches(12))
    model, optimizer = make()
    inputs = list(batches(12))
    with swap(model, optimizer) as within:
        train(model, optimizer, inputs[:8])
        bring = swapper.bring_all

        def once_at_the_end(absent: Any) -> float:
            if within._following is None or within.iteration is None or within._following._swapper is None:
                return bring(absent)
            if within._following._swapper._next < len(within.iteration.events):
                return bring(absent)
            patch.undo()
            raise StorageError("reading failed")

        with monkeypatch.context() as patch:
            patch.setattr(swapper, "bring_all", once_at_the_end)
            with pytest.raises(StorageError, match="reading") as caught:
                step(model, optimizer, inputs[8])
        assert "do not repeat it" in caught.value.__notes__[0]
        train(model, optimizer, inputs[9:])
        assert within.stats.departed == 0
    assert same(plain, model)
