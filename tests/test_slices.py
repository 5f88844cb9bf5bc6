"""Layers in slices: whatever the layer and wherever it is cut, its result is the same within its dtype's rounding."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import penstock
from penstock.planning import Plan, Problem
from penstock.planning.lifetimes import needed_nbytes as least_nbytes
from penstock.planning.slicing import Cut, divide
from penstock.planning.strategies import get
from penstock.runtime import attachment
from penstock.runtime.slices import SlicedProduct

from .adversary import AdversarialDevice
from .streaming import counted_memory, plan_of, stream_tightly, weight_nbytes

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")
PARTS = 5


class _Finely:
    """Cuts every weight that can be into `PARTS` uneven slices, and plans for those."""

    name = "finely"

    def needed_nbytes(self, problem: Problem) -> int:
        return least_nbytes(divide(problem, _cuts(problem)).problem, sliced=False)

    def plan(self, problem: Problem) -> Plan:
        cuts = _cuts(problem)
        return replace(get("auto").plan(divide(problem, cuts).problem), cuts=cuts)


def _cuts(problem: Problem) -> tuple[Cut, ...]:
    cuts = []
    for index, weight in enumerate(problem.weights):
        rows = {part * part * weight.rows // PARTS**2 for part in range(1, PARTS)} - {0}
        if rows and weight.rows > 1:
            cuts.append(Cut(index, tuple(sorted(rows))))
    return tuple(cuts)


def stream_finely(module: nn.Module, given: torch.Tensor, share: float = 0.1, **kwargs: Any) -> Plan:
    """Stream `module` in slices, within the least that they need and a `share` of its weights."""
    stream_tightly(module, (given,), share=share, strategy="finely", **kwargs)
    assert plan_of(module).cuts, "nothing is sliced"
    return plan_of(module)


@pytest.fixture(autouse=True)
def finely(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(penstock.planning.strategies.registry._STRATEGIES, "finely", _Finely())
        yield


class Tied(nn.Module):
    """A language model's ends: rows of a table looked up at the beginning, a product with all of it at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(900, 64)
        self.middle = nn.Linear(64, 64)
        self.head = nn.Linear(64, 900, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.embedding(tokens)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.other = nn.Linear(300, 300), nn.Linear(300, 300, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.other(self.shared(x)).relu())


def one(layer: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(layer(*args, **kwargs))


X = torch.linspace(-1, 1, 2 * 12 * 300).reshape(2, 12, 300)
IMAGE = torch.linspace(-1, 1, 2 * 16 * 20 * 20).reshape(2, 16, 20, 20)
CASES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(300, 500), nn.GELU(), nn.Linear(500, 200, bias=False)), X),
    "linear, one vector": (lambda: nn.Sequential(nn.Linear(300, 500), nn.Linear(500, 200)), X[0, 0]),
    "linear, the root itself": (lambda: nn.Linear(300, 500), X),
    "linear, halves": (lambda: nn.Sequential(nn.Linear(300, 500)).bfloat16(), X.bfloat16()),
    "linear, doubles": (lambda: nn.Sequential(nn.Linear(300, 500)).double(), X.double()),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(12, 200, 7, stride=2, dilation=2), nn.Conv1d(200, 50, 3)), X),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(16, 90, 3, padding=1), nn.ReLU(), nn.Conv2d(90, 40, (5, 3))), IMAGE),
    "conv2d, channels last": (
        lambda: nn.Sequential(nn.Conv2d(16, 90, 3, padding="same"), nn.Conv2d(90, 40, 3)),
        IMAGE.to(memory_format=torch.channels_last),
    ),
    "conv2d, no batch": (one(nn.Conv2d, 16, 90, 3, bias=False), IMAGE[0]),
    "conv2d, groups": (lambda: nn.Sequential(nn.Conv2d(16, 320, 5, groups=8), nn.Conv2d(320, 64, 1, groups=4)), IMAGE),
    "conv2d, depthwise": (
        lambda: nn.Sequential(nn.Conv2d(16, 16 * 90, 5, groups=16, padding_mode="reflect", padding=2)),
        IMAGE,
    ),
    "conv2d, circular padding": (
        lambda: nn.Sequential(nn.Conv2d(16, 90, 3, padding=2, padding_mode="circular")),
        IMAGE,
    ),
    "conv3d": (one(nn.Conv3d, 4, 70, 3, bias=False), IMAGE.reshape(2, 4, 4, 20, 20)),
    "transformers' Conv1D": (lambda: nn.Sequential(Conv1D(400, 300), nn.GELU(), Conv1D(300, 400)), X),
    "transformers' Conv1D, halves": (lambda: nn.Sequential(Conv1D(400, 300)).bfloat16(), X.bfloat16()),
    "a tied language model head": (Tied, torch.tensor([[3, 899, 3, 0], [5, 5, 17, 600]])),
    "a layer that runs twice": (Twice, X),
}


@pytest.mark.parametrize("name", CASES)
def test_a_sliced_layer_gives_what_it_gives_whole(name: str) -> None:
    torch.manual_seed(0)
    build, given = CASES[name]
    module = build()
    with torch.inference_mode():
        expected = module(given)
    device = AdversarialDevice(seed=len(name))
    plan = stream_finely(module, given, device=device)
    with torch.inference_mode():
        for _ in range(3):
            found = module(given)
            assert found.dtype == expected.dtype
            assert found.stride() == expected.stride()
            torch.testing.assert_close(found, expected)
    assert bool(device.freed_nbytes) == bool(plan.loads)
    assert not penstock.inspect(module).stats.demand_loads
    penstock.restore(module)
    with torch.inference_mode():
        assert torch.equal(module(given), expected)


def test_a_model_runs_in_less_than_its_largest_layer() -> None:
    module = nn.Sequential(nn.Linear(300, 40), nn.Linear(40, 20_000), nn.Linear(20_000, 5))
    with torch.inference_mode():
        expected = module(X[0])
    plan = stream_finely(module, X[0], share=0.05)
    assert plan.arena_nbytes < weight_nbytes(module[1]) < weight_nbytes(module)
    with torch.inference_mode():
        torch.testing.assert_close(module(X[0]), expected)
    penstock.restore(module)


def test_under_autocast_slices_compute_as_the_layer_would() -> None:
    module = nn.Sequential(nn.Linear(300, 500), Conv1D(200, 500))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = module(X)
    stream_finely(module, X)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = module(X)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    penstock.restore(module)


def test_an_exact_stream_changes_no_bit_where_another_computes_in_slices() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(5)), nn.Linear(1024, 3000))
    given = torch.linspace(-1, 1, 32 * 1024).reshape(32, 1024)
    with torch.inference_mode():
        expected = module(given)
    with pytest.raises(penstock.BudgetInfeasibleError, match="with exact=False") as refusal:
        penstock.stream(copy.deepcopy(module), budget=1, example=given, exact=True)
    budget = refusal.value.needed_nbytes
    penstock.stream(module, budget=budget, example=given)
    assert plan_of(module).cuts
    penstock.stream(module, budget=budget, example=given, exact=True)
    assert not plan_of(module).cuts
    assert plan_of(module).loads
    with torch.inference_mode():
        assert all(torch.equal(module(given), expected) for _ in range(3))
    assert not penstock.plan(module, budget=budget, example=given, exact=True).cuts
    penstock.restore(module)


class _Subclass(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.abs(), self.bias)


def test_a_layer_that_computes_otherwise_stays_whole() -> None:
    module = nn.Sequential(_Subclass(300, 500), nn.Linear(500, 500))
    with torch.inference_mode():
        expected = module(X)
    plan = stream_finely(module, X)
    assert plan.weight_names[:2] == ("0.weight", "0.bias")
    with torch.inference_mode():
        torch.testing.assert_close(module(X), expected)
    penstock.restore(module)


def test_an_error_amid_the_slices_leaves_a_module_that_works() -> None:
    module = nn.Sequential(nn.Linear(300, 500), nn.Linear(500, 200))
    with torch.inference_mode():
        expected = module(X)
    stream_finely(module, X)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            module(X[..., :7])
        torch.testing.assert_close(module(X), expected)
    penstock.restore(module)


def test_a_weight_in_slices_is_unreadable_and_its_state_is_whole() -> None:
    module = nn.Sequential(nn.Linear(300, 500), nn.Linear(500, 200))
    before: dict[str, Any] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    stream_finely(module, X)
    with torch.inference_mode():
        module(X)
    with pytest.raises((RuntimeError, NotImplementedError)):
        _ = module[0].weight + 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    penstock.restore(module)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[SlicedProduct]]:
    """Every product of slices that a pass makes."""
    made: list[weakref.ref[SlicedProduct]] = []

    class Watched(SlicedProduct):
        def __init__(self, module: nn.Module, given: torch.Tensor) -> None:
            super().__init__(module, given)
            made.append(weakref.ref(self))

    monkeypatch.setattr(attachment, "SlicedProduct", Watched)
    return made


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d, circular padding", "transformers' Conv1D"])
def test_a_result_in_slices_is_freed_as_soon_as_it_is_dropped(
    products: list[weakref.ref[SlicedProduct]], name: str
) -> None:
    build, given = CASES[name]
    module = build()
    stream_finely(module, given)
    given = given.clone()
    with torch.inference_mode():
        result = module(given)
    assert products, "nothing was computed in slices"
    assert all(product() is None for product in products)
    result_alive, given_alive = weakref.ref(result), weakref.ref(given)
    del result, given
    assert result_alive() is None
    assert given_alive() is None
    penstock.restore(module)
