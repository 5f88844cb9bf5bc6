"""Whatever order layers are called in, and whenever bytes arrive: the bits are the resident module's."""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import penstock

from .adversary import AdversarialDevice
from .streaming import WIDTH, counted_memory, equal, is_streaming, needed_nbytes, stream_tightly, weight_nbytes
from .zoo import CASES, SEQUENCE, Block, Branching, Case, EarlyExit, Shared, X, Y, linear

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")


def outputs(module: nn.Module, case: Case) -> list[Any]:
    """What the calls of `case` give, each in its own copy so that a later call cannot change it."""
    torch.manual_seed(7)
    with torch.inference_mode():
        return [copy.deepcopy(module(*call)) for call in case.calls]


def build(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.build()


@pytest.mark.parametrize("plan_now", [True, False], ids=["planned by example", "planned by the first call"])
@pytest.mark.parametrize("name", CASES)
def test_streamed_is_bit_identical_to_resident(name: str, plan_now: bool) -> None:
    case = CASES[name]
    expected = outputs(build(case), case)
    device = AdversarialDevice(seed=len(name))
    share = 0.5 if "by value" in name else 0.05  # nothing is known of its activations before the first pass
    module = stream_tightly(build(case), *case.calls, share=share, plan_now=plan_now, device=device)
    found = outputs(module, case)
    assert device.freed_nbytes, "nothing streamed"
    penstock.restore(module)
    assert [equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(expected)


@pytest.mark.parametrize("seed", range(6))
def test_random_paths_at_random_budgets(seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    paths = torch.randint(0, 5, (12,), generator=chance).tolist()
    case = Case(Branching, tuple((X if path % 2 else Y, path) for path in paths))
    expected = outputs(build(case), case)
    share = float(torch.rand((), generator=chance))
    module = stream_tightly(build(case), *case.calls, share=share, device=AdversarialDevice(seed))
    found = outputs(module, case)
    penstock.restore(module)
    assert [equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(expected)


class Trap(nn.Module):
    """Raises what it is told to, in the middle of its own work."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        self.error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 2 and self.error is not None:
                raise self.error
        return x


def resident_and_streamed(build_one: Any, example: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """Twins, of which the second streams."""
    torch.manual_seed(0)
    resident = build_one()
    torch.manual_seed(0)
    return resident, stream_tightly(build_one(), (example,), share=0.05, **kwargs)


@pytest.mark.parametrize("error", [ValueError("own"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_an_exception_inside_a_pass_reaches_the_caller_and_the_next_pass_is_right(error: BaseException) -> None:
    resident, streamed = resident_and_streamed(Trap, X, device=AdversarialDevice(1))
    with torch.inference_mode():
        expected = resident(X)
        for _ in range(2):
            streamed.error = error
            with pytest.raises(type(error)):
                streamed(X)
            streamed.error = None
            assert equal(streamed(X), expected)
    assert is_streaming(streamed)
    penstock.restore(streamed)


def test_an_exception_in_a_layer_reaches_the_caller_and_the_next_pass_is_right() -> None:
    resident, streamed = resident_and_streamed(Trap, X, device=AdversarialDevice(1))
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match=r"shape|size"):
            streamed(torch.zeros(3, WIDTH + 1))
        assert equal(streamed(X), resident(X))
    penstock.restore(streamed)


def test_threads_that_call_one_module_take_turns() -> None:
    resident, streamed = resident_and_streamed(Shared, X, device=AdversarialDevice(2))
    with torch.inference_mode():
        expected = [resident(x) for x in (X, Y)]
    wrong: list[Any] = []

    def call(index: int) -> None:
        try:
            with torch.inference_mode():
                found = [streamed((X, Y)[index]) for _ in range(4)]
            wrong.extend(index for one in found if not equal(one, expected[index]))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=call, args=(index % 2,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    penstock.restore(streamed)
    assert not wrong


def test_forward_called_directly_streams_too() -> None:
    resident, streamed = resident_and_streamed(Shared, X, device=AdversarialDevice(3))
    with torch.inference_mode():
        assert equal(streamed.forward(X), resident(X))
        assert equal(streamed.own[1].forward(Y), resident.own[1](Y))
    penstock.restore(streamed)


@pytest.mark.parametrize("plan_now", [True, False])
def test_layers_called_outside_a_pass_compute_and_leave_nothing_mapped(plan_now: bool) -> None:
    resident, streamed = resident_and_streamed(Shared, X, device=AdversarialDevice(4), plan_now=plan_now)
    with torch.inference_mode():
        for _ in range(2):
            assert equal(streamed.own[2](Y), resident.own[2](Y))
            assert equal(streamed.shared(X), resident.shared(X))
            assert equal(streamed(X), resident(X))
            assert equal(streamed.own[0].first(Y), resident.own[0].first(Y))
    assert streamed.own[2].first.weight.is_meta
    penstock.restore(streamed)


def test_a_streamed_module_inside_a_plain_one() -> None:
    torch.manual_seed(0)
    inner, tail = Shared(), linear()
    whole = nn.Sequential(inner, tail)
    with torch.inference_mode():
        expected = whole(X)
        stream_tightly(inner, (X,), device=AdversarialDevice(5))
        assert equal(whole(X), expected)
        assert equal(whole(X), expected)
    with pytest.raises(penstock.StreamStateError, match="part of this module is streamed"):
        penstock.stream(whole, budget="64MiB")
    penstock.restore(inner)
    with torch.inference_mode():
        assert equal(whole(X), expected)


def test_a_part_of_a_streamed_module_cannot_be_streamed_again() -> None:
    _, streamed = resident_and_streamed(Shared, X)
    with pytest.raises(penstock.StreamStateError, match="part of a module that is streamed"):
        penstock.stream(streamed.shared, budget="64MiB")
    penstock.restore(streamed)


def test_hooks_of_others_see_every_layer_once_and_real_tensors() -> None:
    resident, streamed = resident_and_streamed(Shared, X, plan_now=False)
    seen: list[torch.Tensor] = []
    for module in (resident, streamed):
        module.own[1].register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    with torch.inference_mode():
        for module in (resident, streamed):
            module(X)
    penstock.restore(streamed)
    assert len(seen) == 2
    assert equal(seen[1], seen[0])


def test_autocast_keeps_the_bits() -> None:
    resident, streamed = resident_and_streamed(Shared, X, device=AdversarialDevice(6))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = resident(X)
        assert equal(streamed(X), expected)
        assert equal(streamed(X), expected)
        assert torch.is_autocast_cache_enabled()
    penstock.restore(streamed)


def test_passes_with_and_without_inference_mode_mix() -> None:
    resident, streamed = resident_and_streamed(lambda: CASES["attention"].build(), SEQUENCE, plan_now=False)
    for context in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad):
        with context():
            assert equal(streamed(SEQUENCE), resident(SEQUENCE))
    with torch.inference_mode():
        penstock.restore(streamed)
    streamed(SEQUENCE).sum().backward()
    assert all(parameter.grad is not None for parameter in streamed.parameters())


def test_the_budget_can_change_between_passes() -> None:
    resident, streamed = resident_and_streamed(Shared, X, device=AdversarialDevice(7))
    handle = penstock.inspect(streamed)
    tight = handle.budget.nbytes
    with torch.inference_mode():
        expected = resident(X)
        for budget in (4 * tight, tight, 2 * tight, tight):
            handle.budget = budget
            assert handle.budget.nbytes == budget
            assert equal(streamed(X), expected)
            assert equal(streamed(X), expected)
        with pytest.raises(penstock.BudgetInfeasibleError):
            handle.budget = 1000
        assert handle.budget.nbytes == tight
        assert equal(streamed(X), expected)
    penstock.restore(streamed)


def test_a_stream_cannot_change_within_its_own_pass() -> None:
    _, streamed = resident_and_streamed(Shared, X)
    handle = penstock.inspect(streamed)
    errors: list[Exception] = []

    def meddle(*_: Any) -> None:
        for change in (lambda: penstock.restore(streamed), lambda: setattr(handle, "budget", "64MiB")):
            with pytest.raises(penstock.StreamStateError, match="a pass of this module is running") as caught:
                change()
            errors.append(caught.value)

    streamed.own[0].register_forward_hook(meddle)
    with torch.inference_mode():
        streamed(X)
    penstock.restore(streamed)
    assert len(errors) == 2


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.blocks = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH), nn.Sequential(Block(), Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(torch.einsum("bi,io->bo", x, self.weight))


class Experts(nn.Module):
    """Each row goes to the expert that it names: how many rows an expert gets is not in any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(linear() for _ in range(4))

    def forward(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero()[:, 0]
            if len(rows):
                result[rows] = expert(x[rows])
        return result


SIX = torch.cat([X, Y])
UNALIGNED = {
    "single rows": Case(lambda: nn.Sequential(Block(), Block(), Block()), ((X[:1],), (X,), (Y[:1],))),
    "single rows later": Case(lambda: nn.Sequential(Block(), Block(), Block()), ((X,), (X[:1],), (Y[:1],))),
    "one sequence through an LSTM": Case(CASES["LSTM"].build, ((SEQUENCE[:1],), (SEQUENCE,), (SEQUENCE[:1],))),
    "einsum of one row": Case(Einsum, ((X[:1],), (X,), (Y[:1],))),
    "experts": Case(
        Experts,
        ((SIX, torch.tensor([0, 0, 1, 1, 2, 2])), (SIX, torch.tensor([0, 3, 3, 1, 1, 1])), (SIX, torch.arange(6) % 5)),
    ),
}


def save_unaligned(module: nn.Module, path: Path) -> None:
    """A checkpoint whose data begins at 8 modulo 16, as those of many libraries do."""
    for length in range(64):
        save_file(module.state_dict(), path, metadata={"padding": " " * length})
        if int.from_bytes(path.read_bytes()[:8], "little") % 16 == 0:
            return
    raise AssertionError("no header of this length")


@pytest.mark.parametrize("name", UNALIGNED)
def test_unaligned_checkpoints_keep_the_bits(name: str, tmp_path: Path) -> None:
    case = UNALIGNED[name]
    resident, module = build(case), build(case)
    expected = outputs(resident, case)
    save_unaligned(resident, tmp_path / "model.safetensors")
    budget = needed_nbytes(module, *case.calls) + weight_nbytes(module) // 3
    device = AdversarialDevice(1)
    penstock.stream(module, tmp_path / "model.safetensors", budget=budget, device=device)
    found = outputs(module, case)
    assert device.freed_nbytes, "nothing streamed"
    penstock.restore(module)
    assert [equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(expected)


def test_resident_layers_that_no_pass_has_called_yet_are_in_memory() -> None:
    torch.manual_seed(0)
    module = EarlyExit()
    with torch.inference_mode():
        expected = module(X, 6)
        penstock.stream(module, budget="16MiB", example=(X, 6))
        for _ in range(8):
            module(X, 2)
        assert equal(module(X, 6), expected)
    assert penstock.inspect(module).stats.demand_loads == 0
    penstock.restore(module)


class Interrupt:
    """Ctrl-C before the `nth` line that this thread executes in the runtime's bookkeeping."""

    def __init__(self, nth: int, files: Collection[str] = ("pipeline", "executor", "holdings")) -> None:
        self.left, self.files = nth, files

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "call":
            return self if Path(frame.f_code.co_filename).stem in self.files else None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("nth", range(1, 500, 11))
def test_an_interrupt_between_any_two_lines_leaves_a_module_that_works(nth: int) -> None:
    resident, streamed = resident_and_streamed(Trap, X, device=AdversarialDevice(nth))
    with torch.inference_mode():
        expected = resident(X)
        assert equal(streamed(X), expected)
        before = sys.gettrace()
        sys.settrace(Interrupt(nth))
        try:
            with pytest.raises(KeyboardInterrupt):
                streamed(X)
        finally:
            sys.settrace(before)
        for _ in range(2):
            assert equal(streamed(X), expected)
    penstock.restore(streamed)


@pytest.mark.parametrize("nth", range(1, 240, 6))
def test_an_interrupt_while_another_budget_is_planned_for_leaves_the_old_one_in_force(nth: int) -> None:
    resident, streamed = resident_and_streamed(Trap, X, device=AdversarialDevice(nth))
    stream = penstock.inspect(streamed)
    old = stream.budget
    with torch.inference_mode():
        expected = resident(X)
        assert equal(streamed(X), expected)
        before = sys.gettrace()
        sys.settrace(Interrupt(nth, ("pipeline", "executor", "holdings", "deployment")))
        try:
            with contextlib.suppress(KeyboardInterrupt):
                stream.budget = old.nbytes + 4096
        finally:
            sys.settrace(before)
        assert equal(streamed(X), expected)
        assert stream.plan.budget_nbytes == stream.budget.nbytes
        stream.budget = old.nbytes + 8192
        assert equal(streamed(X), expected)
    penstock.restore(streamed)
