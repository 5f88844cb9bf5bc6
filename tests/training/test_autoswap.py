"""Training within a budget: the same to the last bit, and really within."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tests.training.loops import (
    BUDGET,
    MIB,
    ROWS,
    batches,
    both,
    make,
    swap,
    train,
)
from torch import nn

from penstock.errors import StreamStateError
from penstock.footprint import read_memory, return_free_memory
from penstock.training import swapfile
from penstock.training.meter import Meter

pytestmark = pytest.mark.usefixtures("steady")


@pytest.mark.parametrize("scores", ["best", "doa", "aoa", "wdoa", "swdoa"])
def test_training_is_the_same_to_the_last_bit(scores: str) -> None:
    within = both(scores=scores)
    assert within.plan is not None
    assert within.plan.swaps
    assert within.plan.peak_nbytes <= BUDGET < within.plan.full_peak_nbytes
    assert within.stats.iterations >= 4
    assert within.stats.departed == 0
    assert within.stats.swapped_nbytes == within.stats.iterations * within.plan.swapped_nbytes
    assert "leave memory" in within.explain()


def test_what_leaves_is_really_gone() -> None:
    taken: list[int] = []

    def watched(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        return_free_memory()
        taken.append(anonymous_nbytes())
        loss.backward()
        optimizer.step()
        return 0.0

    model, optimizer = make()
    within = swap(model, optimizer, budget=28 * MIB)
    train(model, optimizer, batches(8), within, one=watched)
    assert within.plan is not None
    saved_nbytes = within.plan.full_peak_nbytes - within.plan.peak_nbytes
    assert saved_nbytes > 4 * MIB
    assert within.stats.iterations >= 4
    assert taken[2] - taken[-1] > saved_nbytes // 2


def anonymous_nbytes() -> int:
    memory = read_memory()
    assert memory is not None
    return memory.anonymous_nbytes


def test_nothing_stays_behind(tmp_path: Path) -> None:
    model, optimizer = make()
    within = swap(model, optimizer, offload_folder=tmp_path)
    train(model, optimizer, batches(6), within)
    assert within.stats.iterations
    assert not list(tmp_path.iterdir())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def test_a_plan_that_turns_out_too_large_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = 4 * MIB
    model, optimizer = make()
    within = swap(model, optimizer)
    monkeypatch.setattr(
        Meter, "taken_nbytes", lambda self: within.plan.peak_nbytes + beside if within.plan is not None else 0
    )
    train(model, optimizer, batches(12), within)
    assert beside < within.overhead_nbytes < beside + BUDGET // 20  # some is for the kernel's own accounts
    assert within.plan is not None
    assert within.plan.peak_nbytes + beside < BUDGET


def test_one_iteration_beyond_the_budget_is_no_reason_to_plan_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one is in which a checkpoint was written."""
    model, optimizer = make()
    within = swap(model, optimizer)
    monkeypatch.setattr(Meter, "taken_nbytes", lambda self: 1 << 40 if within.stats.iterations == 2 else 0)
    train(model, optimizer, batches(12), within)
    assert within.stats.iterations >= 5


def test_an_iteration_that_departed_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make()
    within = swap(model, optimizer)
    monkeypatch.setattr(Meter, "taken_nbytes", lambda self: 1 << 40 if within.stats.departed else 0)
    with within:
        train(model, optimizer, batches(7))
        train(model, optimizer, batches(3, rows=ROWS // 2))
    assert within.stats.departed == 3


def test_what_cannot_be_corrected_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = make()
    within = swap(model, optimizer)
    monkeypatch.setattr(Meter, "taken_nbytes", lambda self: BUDGET + 1 if within.plan is not None else 0)
    monkeypatch.setattr(sys.modules["penstock.training.planner"].Planner, "correct", lambda self, nbytes, plan: None)
    with caplog.at_level(logging.WARNING, logger="penstock"):
        train(model, optimizer, batches(24), within)
    assert "after 3 corrections of its plan" in caplog.text


def test_a_block_that_has_ended_leaves_another_one_alone() -> None:
    model, optimizer = make()
    first, second = swap(model, optimizer), swap(model, optimizer)
    train(model, optimizer, batches(2), first)
    with second:
        first.__exit__(None, None, None)
        train(model, optimizer, batches(8))
        assert second.stats.iterations


def test_blocks_cannot_be_nested() -> None:
    model, optimizer = make()
    with swap(model, optimizer), pytest.raises(StreamStateError, match="nested"), swap(model, optimizer):
        pass
    with swap(model, optimizer):
        pass


def test_the_systems_temporary_folder_is_the_default() -> None:
    file = swapfile.SwapFile(None)
    file.close()
    assert file.folder == Path(tempfile.gettempdir())
