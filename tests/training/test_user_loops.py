"""Training within a budget is the same to the last bit, whatever the loop does."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import pytest
import torch
from tests.training.loops import (
    MIB,
    ROWS,
    WIDTH,
    Tower,
    batches,
    both,
    least_nbytes,
    make,
    same,
    step,
    swap,
    tightly,
    train,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from penstock.planning.swap_problem import Link
from penstock.training.autoswap import AutoSwap

pytestmark = pytest.mark.usefixtures("steady")


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
