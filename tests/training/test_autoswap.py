"""Training within a budget: the same to the last bit, whatever the loop does."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.loops import ROWS, WIDTH, Tower, batches, make, same, step, train
from torch import nn
from torch.utils.checkpoint import checkpoint

import penstock
from penstock.errors import BudgetError, BudgetInfeasibleError, PlanError, StorageError, StreamStateError
from penstock.footprint import read_memory, return_free_memory
from penstock.planning.swap_problem import Link
from penstock.training import swapfile
from penstock.training.autoswap import AutoSwap
from penstock.training.meter import Meter

MIB = 1 << 20
BUDGET = 36 * MIB


@pytest.fixture(autouse=True)
def _no_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured beside storages differs from run to run; what is planned then, too."""
    monkeypatch.setattr(sys.modules["penstock.training.meter"], "read_memory", lambda: None)
    link = Link(1e-4, 1e9)  # measured ones take longer than these loops
    monkeypatch.setattr(sys.modules["penstock.training.planner"], "measure_links", lambda folder: (link, link))


def swap(model: nn.Module, optimizer: Any, **more: Any) -> AutoSwap:
    return penstock.autoswap(model, optimizer, budget=more.pop("budget", BUDGET), **more)


def both(
    one: Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], float] = step,
    steps: int = 8,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    **more: Any,
) -> AutoSwap:
    """Train plainly and within the budget, compare, and tell what happened."""
    plain, plainly = make(optimizer=optimizer)
    expected = train(plain, plainly, batches(steps), one=one)
    model, its = make(optimizer=optimizer)
    within = swap(model, its, **more)
    assert train(model, its, batches(steps), within, one=one) == expected
    assert same(plain, model)
    return within


def least_nbytes(one: Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], float]) -> int:
    """What no budget may be below, if nothing that may leave is held by somebody else."""
    iteration = both(one, budget="1GiB").iteration
    assert iteration is not None
    link = Link(0.0, 1e9)
    return iteration.problem(link, link, 1).least_nbytes()


def tightly(one: Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], float]) -> None:
    """Compare within the least budget, where all leaves that may."""
    within = both(one, budget=least_nbytes(one) + MIB)
    assert within.plan is not None
    assert within.plan.swaps
    assert within.stats.iterations >= 4


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


# -- loops that do other things --


def test_a_short_last_batch_and_evaluation_in_between() -> None:
    plain, plainly = make()
    model, optimizer = make()
    within = swap(model, optimizer)
    inputs = [*batches(6), *batches(1, ROWS // 2), *batches(4)]

    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        loss = step(model, optimizer, x)
        with torch.no_grad():
            return loss + float(model(x[:16]).sum())

    expected = train(plain, plainly, inputs, one=one)
    assert train(model, optimizer, inputs, within, one=one) == expected
    assert same(plain, model)
    assert within.stats.departed == 1
    assert within.stats.iterations >= 6


def test_evaluation_with_gradients_departs_and_is_right() -> None:
    plain, plainly = make()
    model, optimizer = make()
    within = swap(model, optimizer)

    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        loss = step(model, optimizer, x)
        return loss + (float(model(x[:64]).sum().detach()) if loss_count[0] == 5 else 0)

    loss_count = [0]

    def counted(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        loss_count[0] += 1
        return one(model, optimizer, x)

    expected = train(plain, plainly, batches(9), one=counted)
    loss_count[0] = 0
    assert train(model, optimizer, batches(9), within, one=counted) == expected
    assert same(plain, model)
    assert within.stats.departed == 1


def test_a_loss_that_is_given_up() -> None:
    """A forward whose graph is dropped while some of it is away."""
    model, optimizer = make()
    plain, plainly = make()
    within = swap(model, optimizer)
    count = [0]

    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        count[0] += 1
        if count[0] % 5 == 0:
            model(x)  # not a number, say
        return step(model, optimizer, x)

    expected = train(plain, plainly, batches(11), one=one)
    count[0] = 0
    assert train(model, optimizer, batches(11), within, one=one) == expected
    assert same(plain, model)
    assert within.stats.departed >= 1


def test_gradient_accumulation() -> None:
    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        total = 0.0
        for part in (x, x * 0.5, x + 1):
            loss = model(part).square().mean()
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        return total

    within = both(one)
    assert within.stats.iterations >= 4


def test_other_dtypes_and_views_come_back_as_they_were() -> None:
    """Indices of a pooling are integers; slices and transposes of one storage come back as parts of it."""

    def pooled(y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y, _ = torch.nn.functional.max_pool1d(y, 2, return_indices=True)
        return torch.cat([y, y * y], 1).masked_fill(mask, 0.5)

    def parts(y: torch.Tensor) -> torch.Tensor:
        left, right = y.chunk(2, 1)
        return left.t() @ right + (left * right).sum() + y.double().tanh().mean().float()

    def one(model: Any, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = parts(pooled(model.layers[0](x), x > 0)).tanh().square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    tightly(one)


def test_a_step_with_a_closure() -> None:
    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        def closure() -> float:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return float(loss.detach())

        return float(optimizer.step(closure) or 0)

    assert both(one).stats.iterations >= 3


def test_two_optimizers() -> None:
    def pair() -> tuple[Tower, list[torch.optim.Optimizer]]:
        model, _ = make()
        first, second = list(model.layers[:3].parameters()), list(model.layers[3:].parameters())
        return model, [torch.optim.SGD(first, lr=1e-2), torch.optim.Adam(second, lr=1e-3)]

    def train_both(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[float]:
        losses = []
        for index, x in enumerate(batches(20)):
            losses.append(step(model, optimizers[index % 2], x))
        return losses

    plain, plainly = pair()
    expected = train_both(plain, plainly)
    model, optimizers = pair()
    with swap(model, optimizers) as within:
        assert train_both(model, optimizers) == expected
    assert same(plain, model)
    assert within.stats.iterations >= 3


def test_retained_graphs_and_double_backward() -> None:
    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        x = x.requires_grad_()
        out = model(x).square().mean()
        out.backward(retain_graph=True)
        (slope,) = torch.autograd.grad(out, x, create_graph=True)
        slope.square().sum().backward()
        optimizer.step()
        return float(out.detach())

    within = both(one, budget=72 * MIB)
    assert within.stats.iterations >= 3


def test_autocast() -> None:
    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    assert both(one).stats.iterations >= 3


@pytest.mark.parametrize("reentrant", [False, True])
def test_together_with_checkpointing(reentrant: bool) -> None:
    def one(model: Any, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        x = x.requires_grad_()
        for layer in model.layers:
            x = checkpoint(lambda x, layer=layer: torch.nn.functional.gelu(layer(x)) + x, x, use_reentrant=reentrant)
        loss = x.square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    within = both(one, budget=24 * MIB)
    assert within.stats.iterations >= 3


def test_hooks_of_the_users_own_around_and_inside() -> None:
    packed: list[int] = []

    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        y = model(x)
        with torch.autograd.graph.save_on_cpu():
            loss = y.square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(1)
        return tensor * 2  # as one that compresses

    plain, plainly = make()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor / 2):
        expected = train(plain, plainly, batches(7), one=one)
        count, packed = len(packed), []
        model, optimizer = make()
        within = swap(model, optimizer)
        assert train(model, optimizer, batches(7), within, one=one) == expected
    assert len(packed) == count
    assert same(plain, model)
    assert within.stats.iterations >= 3


def test_a_mutated_saved_tensor_raises_as_in_torch() -> None:
    def mutating(model: Any, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        y = torch.nn.functional.gelu(model.layers[0](x))
        z = model.layers[1](y)
        if mutates[0]:
            y.mul_(2)
        loss = z.square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    mutates = [False]
    model, optimizer = make()
    with swap(model, optimizer, budget="1GiB") as within:
        for x in batches(5):
            mutating(model, optimizer, x)
        assert within.plan is not None
        mutates[0] = True
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            mutating(model, optimizer, torch.ones(ROWS, WIDTH))


def test_an_exception_inside_the_block_loses_nothing() -> None:
    model, optimizer = make()
    plain, plainly = make()
    inputs = list(batches(8))
    train(plain, plainly, inputs)
    kept: list[torch.Tensor] = []

    def interrupted(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        if x is not inputs[-1]:
            return step(model, optimizer, x)
        optimizer.zero_grad()
        kept.append(model(x).square().mean())
        raise KeyboardInterrupt

    within = swap(model, optimizer)
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, inputs, within, one=interrupted)
    assert within.stats.iterations
    kept[0].backward()  # what was away is back
    optimizer.step()
    assert same(plain, model)


def test_a_graph_that_outlives_its_iteration_keeps_its_own_bytes() -> None:
    """Of an input's gradient, which no step changes: each is asked for one iteration late."""

    def run(budget: int | None) -> tuple[list[torch.Tensor], AutoSwap | None]:
        model, _ = make()
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        held: list[tuple[torch.Tensor, torch.Tensor]] = []
        found = []
        with swap(model, optimizer, budget=budget) if budget else contextlib.nullcontext() as within:
            for index, x in enumerate(batches(13)):
                y = x.requires_grad_()
                for _ in range(8):
                    y = torch.tanh(y) + 1
                held.append((y.square().sum(), x))
                if index < 8 or index > 9:  # two in a row are asked for late
                    found += [torch.autograd.grad(*one)[0] for one in held]
                    held.clear()
                optimizer.step()
        return found, within

    expected, _ = run(None)
    _, wide = run(1 << 30)
    assert wide is not None
    assert wide.iteration is not None
    link = Link(0.0, 1e9)
    found, within = run(wide.iteration.problem(link, link, 1).least_nbytes() + MIB)
    assert within is not None
    assert within.plan is not None
    assert within.plan.swaps
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_tensor_that_the_user_keeps_is_never_emptied() -> None:
    def one(model: Any, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        out = torch.tanh(model.layers[0](x))
        loss = model(out).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach() + out.detach().mean())

    within = both(one, budget=30 * MIB)
    assert within.plan is not None
    assert within.plan.swaps


def test_what_a_local_variable_holds_is_not_counted_as_away() -> None:
    def squared(x: torch.Tensor) -> torch.Tensor:
        return x * x

    def one(model: Any, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        held = [torch.tanh(model.layers[0](x))]
        loss = model(squared(held[0] if holds[0] else held.pop())).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    holds, absences = [False], []
    budget = least_nbytes(one) + 7 * MIB
    for holds[0] in (False, True):
        within = both(one, budget=budget, scores="doa")
        assert within.iteration is not None
        absences.append(len(within.iteration.absences))
    assert absences[1] < absences[0]


def test_graphs_that_are_dropped_are_freed() -> None:
    released: list[int] = []
    model, optimizer = make()
    with swap(model, optimizer):
        for x in batches(7):
            step(model, optimizer, x)
        for _ in range(5):
            weakref.finalize(torch.tanh(model(torch.ones(ROWS, WIDTH))).untyped_storage(), released.append, 1)
    assert len(released) == 5


def test_a_second_backward_now_and_then_reads_its_own_bytes() -> None:
    count = [0]

    def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        count[0] += 1
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward(retain_graph=count[0] % 4 == 0)
        if count[0] % 4 == 0:
            loss.backward()
        optimizer.step()
        return float(loss.detach())

    plain, plainly = make()
    expected = train(plain, plainly, batches(14), one=one)
    model, optimizer = make()
    count[0] = 0
    iteration_budget = 24 * MIB
    within = swap(model, optimizer, budget=iteration_budget)
    assert train(model, optimizer, batches(14), within, one=one) == expected
    assert same(plain, model)
    assert within.stats.iterations >= 3


def test_conjugated_tensors() -> None:
    def one(model: Any, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
        optimizer.zero_grad()
        a = torch.complex(model.layers[0](x), model.layers[1](x))
        product = a.conj() * torch.complex(model.layers[2](x), x)
        loss = torch.view_as_real(product * product).square().mean() + model(x).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    tightly(one)


def test_three_optimizers() -> None:
    def triple() -> tuple[Tower, list[torch.optim.Optimizer]]:
        model, _ = make()
        return model, [torch.optim.SGD(model.layers[i : i + 2].parameters(), lr=1e-2) for i in (0, 2, 4)]

    def together(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[float]:
        losses = []
        for x in batches(9):
            model.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    plain, plainly = triple()
    expected = together(plain, plainly)
    model, optimizers = triple()
    with swap(model, optimizers) as within:
        assert together(model, optimizers) == expected
    assert same(plain, model)
    assert within.stats.iterations >= 3


# -- what goes wrong --


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


def test_a_plan_that_turns_out_too_large_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = 4 * MIB
    model, optimizer = make()
    within = swap(model, optimizer)
    monkeypatch.setattr(
        Meter, "taken_nbytes", lambda self: within.plan.peak_nbytes + beside if within.plan is not None else 0
    )
    train(model, optimizer, batches(12), within)
    assert within.overhead_nbytes == beside
    assert within.plan is not None
    assert within.plan.peak_nbytes + beside <= BUDGET


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
    monkeypatch.setattr(sys.modules["penstock.training.planner"].Planner, "correct", lambda self, nbytes: None)
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


def failing(*_: Any) -> int:
    raise OSError(5, os.strerror(5))


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
