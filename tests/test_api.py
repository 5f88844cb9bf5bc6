"""stream, restore, inspect, plan, from_pretrained: what people call."""

from __future__ import annotations

import copy
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import penstock
from penstock.footprint import Footprint
from penstock.planning import Plan
from penstock.planning.strategies import names

from .streaming import WIDTH, counted_memory, equal, is_streaming, needed_nbytes, weight_nbytes
from .zoo import Block, Tied, X, Y, tokens

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")


class Normed(nn.Module):
    """Weights, persistent and other buffers, a tied pair, a parameter subclass and one that wants no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.blocks[3].second.weight = self.blocks[0].first.weight
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("offset", torch.ones(WIDTH), persistent=False)
        self.own = Special(torch.randn(WIDTH, WIDTH) / WIDTH)
        self.blocks[1].first.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x @ self.own) + self.offset


class Special(nn.Parameter):
    """A parameter subclass."""


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return Normed().eval()


@pytest.fixture
def checkpoint(module: nn.Module, tmp_path: Path) -> Path:
    state = module.state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def budget(module: nn.Module) -> int:
    return needed_nbytes(module, (X,)) + weight_nbytes(module) // 4


def run(module: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.inference_mode():
        return module(x)


def test_a_streamed_module_answers_as_before_and_restore_leaves_no_trace(module: nn.Module, budget: int) -> None:
    before = {name: (id(parameter), parameter.requires_grad) for name, parameter in module.named_parameters()}
    attributes = {name: set(vars(child)) for name, child in module.named_modules()}
    expected, threads = run(module), threading.active_count()
    assert penstock.stream(module, budget=budget, example=X) is module
    assert is_streaming(module)
    assert [equal(run(module), expected) for _ in range(3)] == [True] * 3
    assert penstock.restore(module) is module
    assert threading.active_count() == threads
    assert {name: set(vars(child)) for name, child in module.named_modules()} == attributes
    assert {name: (id(p), p.requires_grad) for name, p in module.named_parameters()} == before
    assert type(module.own) is Special
    assert module.blocks[3].second.weight is module.blocks[0].first.weight
    assert equal(run(module), expected)


def test_parameters_keep_identity_subclass_shape_and_gradient_wish_while_streamed(
    module: nn.Module, budget: int
) -> None:
    before = dict(module.named_parameters())
    wishes = {name: parameter.requires_grad for name, parameter in before.items()}
    penstock.stream(module, budget=budget, example=X)
    run(module)
    now = dict(module.named_parameters())
    assert all(now[name] is parameter for name, parameter in before.items())
    assert {name: parameter.requires_grad for name, parameter in now.items()} == wishes
    assert type(now["own"]) is Special
    assert now["own"].shape == (WIDTH, WIDTH)
    assert now["own"].dtype == torch.float32
    assert now["own"].device.type == "cpu"
    penstock.restore(module)


def test_weights_come_from_the_checkpoint_that_is_given(module: nn.Module, checkpoint: Path, budget: int) -> None:
    expected = run(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.norm.running_mean.fill_(7)
    penstock.stream(module, checkpoint, budget=budget, example=X)
    assert equal(run(module), expected)
    penstock.restore(module)
    assert equal(run(module), expected)


def test_a_skeleton_on_the_meta_device_streams(module: nn.Module, checkpoint: Path, budget: int) -> None:
    with torch.device("meta"):
        skeleton = Normed().eval()
    skeleton.offset = torch.ones(WIDTH)
    own = skeleton.own
    penstock.stream(skeleton, checkpoint, budget=budget, example=X)
    assert equal(run(skeleton), run(module))
    penstock.restore(skeleton)
    assert skeleton.own is own
    assert equal(run(skeleton), run(module))


def test_state_dict_of_a_streamed_module_holds_the_real_weights(module: nn.Module, budget: int) -> None:
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    penstock.stream(module, budget=budget, example=X)
    run(module)
    found = module.state_dict()
    part = module.blocks[2].state_dict(prefix="p.")
    run(module, Y)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(part["p.first.weight"], expected["blocks.2.first.weight"])
    penstock.restore(module)


def test_streaming_again_replaces_budget_and_checkpoint(
    module: nn.Module, checkpoint: Path, budget: int, tmp_path: Path
) -> None:
    expected = run(module)
    doubled = {name: t * 2 if t.is_floating_point() else t for name, t in load_file(checkpoint).items()}
    save_file(doubled, tmp_path / "doubled.safetensors")
    other = Normed().eval()
    other.load_state_dict(doubled)
    penstock.stream(module, budget=budget, example=X)
    written = penstock.inspect(module).owned_folder
    penstock.stream(module, budget=4 * budget)
    assert penstock.inspect(module).budget.nbytes == 4 * budget
    assert equal(run(module), expected)
    penstock.stream(module, tmp_path / "doubled.safetensors", budget=budget)
    assert written is not None
    assert not written.exists()
    assert equal(run(module), run(other))
    penstock.restore(module)
    penstock.stream(module, checkpoint, budget=budget)
    assert equal(run(module), expected)
    penstock.restore(module)


def test_what_is_left_in_place_after_restore_can_be_trained(module: nn.Module, budget: int) -> None:
    penstock.stream(module, budget=budget, example=X)
    run(module)
    penstock.restore(module)
    module(X).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def test_stats_count_what_happened(module: nn.Module, budget: int) -> None:
    penstock.stream(module, budget=budget, example=X)
    handle = penstock.inspect(module)
    assert handle.stats.passes == 0
    run(module)
    first = handle.stats
    run(module)
    second = handle.stats
    assert (first.passes, second.passes) == (1, 2)
    assert second.bytes_read > first.bytes_read > 0
    assert second.stall_seconds >= first.stall_seconds >= 0
    assert second.demand_loads == 0
    assert 0 < second.peak_nbytes <= budget
    assert "2 passes" in handle.explain()
    assert "within" in repr(handle)
    penstock.restore(module)


def test_nothing_is_planned_before_the_first_call_without_an_example(module: nn.Module, budget: int) -> None:
    penstock.stream(module, budget=budget)
    with pytest.raises(penstock.StreamStateError, match="nothing is planned"):
        _ = penstock.inspect(module).plan
    run(module)
    assert penstock.inspect(module).plan.budget_nbytes == budget
    penstock.restore(module)


@pytest.mark.parametrize("example", [X, (X,), {"input": X}], ids=["a tensor", "a tuple", "keywords"])
def test_an_example_is_a_tensor_arguments_or_keywords(example: Any) -> None:
    module = nn.Sequential(*[Block() for _ in range(4)])
    expected = run(module)
    penstock.stream(module, budget="1MiB", example=example)
    assert penstock.inspect(module).plan
    assert equal(run(module), expected)
    penstock.restore(module)


# -- plan --


def test_plan_is_the_plan_that_stream_follows(module: nn.Module, checkpoint: Path, budget: int) -> None:
    planned = penstock.plan(module, checkpoint, budget=budget, example=X)
    with torch.device("meta"):
        skeleton = Normed().eval()
    skeleton.offset = torch.ones(WIDTH)
    assert penstock.plan(skeleton, checkpoint, budget=budget, example=X) == planned
    penstock.stream(module, checkpoint, budget=budget, example=X)
    assert penstock.inspect(module).plan == planned
    assert penstock.plan(module, budget=budget, example=X) == planned
    assert penstock.plan(module, budget=2 * budget, example=X).budget_nbytes == 2 * budget
    assert penstock.inspect(module).plan == planned
    assert Plan.from_json(planned.to_json()) == planned
    penstock.restore(module)


def test_planning_changes_nothing_and_starts_nothing(module: nn.Module, checkpoint: Path, budget: int) -> None:
    before = {name: (id(p), p.data_ptr()) for name, p in module.named_parameters()}
    buffers = {name: (id(b), b.clone()) for name, b in module.named_buffers()}
    attributes = {name: dict(vars(child)) for name, child in module.named_modules()}
    expected, state, threads = run(module), torch.get_rng_state(), threading.active_count()
    penstock.plan(module, checkpoint, budget=budget, example=X)
    with pytest.raises(penstock.BudgetInfeasibleError):
        penstock.plan(module, checkpoint, budget=1000, example=X)
    assert threading.active_count() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: (id(p), p.data_ptr()) for name, p in module.named_parameters()} == before
    assert all(id(b) == buffers[name][0] and torch.equal(b, buffers[name][1]) for name, b in module.named_buffers())
    assert {name: dict(vars(child)) for name, child in module.named_modules()} == attributes
    assert equal(run(module), expected)


def test_planning_asks_for_a_checkpoint_or_a_stream(module: nn.Module, checkpoint: Path, budget: int) -> None:
    with pytest.raises(penstock.StreamStateError, match="not streamed"):
        penstock.plan(module, budget=budget, example=X)
    penstock.stream(module, budget=budget, example=X)
    with pytest.raises(penstock.StreamStateError, match="streamed already"):
        penstock.plan(module, checkpoint, budget=budget, example=X)
    penstock.restore(module)


# -- a second process, which finds what the first one learnt --


def test_the_second_stream_of_a_checkpoint_plans_before_the_first_call(
    module: nn.Module, checkpoint: Path, budget: int
) -> None:
    penstock.stream(copy.deepcopy(module), checkpoint, budget=budget, example=X)
    penstock.stream(module, checkpoint, budget=budget)
    handle = penstock.inspect(module)
    assert handle.plan.loads
    expected = run(module)
    penstock.restore(module)
    assert equal(run(module), expected)


def test_a_module_that_is_dropped_takes_its_threads_with_it(module: nn.Module, budget: int) -> None:
    threads = threading.active_count()
    penstock.stream(copy.deepcopy(module), budget=budget, example=X)
    gc.collect()
    assert threading.active_count() == threads


def test_tables_are_read_by_rows_and_not_loaded() -> None:
    torch.manual_seed(0)
    module = Tied()
    module.head = nn.Linear(WIDTH, 50)
    with torch.inference_mode():
        expected = [module(tokens(seed)) for seed in range(3)]
        penstock.stream(module, budget=needed_nbytes(module, (tokens(0),)), example=tokens(0))
        plan = penstock.inspect(module).plan
        assert [plan.weight_names[index] for index in plan.rows] == ["embed.weight"]
        assert all(equal(module(tokens(seed)), expected[seed]) for seed in range(3))
    penstock.restore(module)


def test_an_unmeasured_model_has_as_much_kept_free_for_its_unknown_needs_as_the_budget_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Footprint, "growth_nbytes", lambda _: 0)
    module = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(3))).eval()
    example = torch.zeros(2, 2048)
    with pytest.raises(penstock.BudgetInfeasibleError) as refusal:
        penstock.stream(module, budget="9MiB", example=example, exact=True)
    needed = refusal.value.needed_nbytes
    reserved = []
    for budget in (needed, needed + (1 << 20), 4 * needed):
        penstock.stream(module, budget=budget, example=example, exact=True)
        reserved.append(penstock.inspect(module).plan.reserve.total_nbytes)
    assert reserved == [reserved[0], reserved[0] + (1 << 20), reserved[0] + needed]
    penstock.restore(module)


@pytest.fixture(params=names())
def strategy(request: pytest.FixtureRequest) -> str:
    if request.param == "flashmem":
        pytest.importorskip("ortools", reason="flashmem plans with ortools, which is not installed")
    return str(request.param)


def test_every_strategy_runs_and_changes_no_bit(module: nn.Module, strategy: str) -> None:
    expected = run(module)
    budget = 8 * weight_nbytes(module) if strategy in ("preload", "synchronous") else weight_nbytes(module)
    penstock.stream(module, budget=budget, example=X, strategy=strategy)
    assert penstock.inspect(module).plan.strategy == strategy
    assert is_streaming(module) == (strategy != "preload")
    assert [equal(run(module), expected) for _ in range(3)] == [True] * 3
    penstock.restore(module)


def test_least_memory_is_asked_for_within_the_budget(module: nn.Module, checkpoint: Path, budget: int) -> None:
    expected = run(module)
    penstock.stream(module, budget=budget, example=X, least_memory=True)
    plan = penstock.inspect(module).plan
    assert plan.budget_nbytes < penstock.inspect(module).budget.nbytes == budget
    assert [equal(run(module), expected) for _ in range(2)] == [True] * 2
    penstock.restore(module)
    loose = penstock.plan(module, checkpoint, budget=budget, example=X, max_overhead=1e9)
    assert loose.budget_nbytes <= budget


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_overhead": 0.1, "least_memory": True}, "contradict"),
        ({"max_overhead": -1.0}, "max_overhead is -1.0"),
        ({"lam": 0.5}, "only strategy 'flashmem'"),
        ({"lam": 2.0, "strategy": "flashmem"}, "lam is 2.0"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_happens(
    module: nn.Module, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(penstock.PlanError, match=message):
        penstock.stream(module, budget="64MiB", **options)
    assert not any(parameter.is_meta for parameter in module.parameters())


class _Positions(nn.Embedding):
    """As BART's: it makes the positions that it looks up where its table is."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.arange(given.shape[1], device=self.weight.device))


class _Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions, self.linear = _Positions(100_000, 64), nn.Linear(64, 64)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.linear(given + self.positions(given))


def test_a_table_that_is_read_by_rows_makes_positions_where_they_can_be_looked_up() -> None:
    module, given = _Placed().eval(), torch.randn(2, 5, 64)
    with torch.inference_mode():
        expected = module(given)
        penstock.stream(module, budget="8MiB", example=given)
        plan = penstock.inspect(module).plan
        assert [plan.weight_names[index] for index in plan.rows] == ["positions.weight"]
        assert torch.equal(module(given), expected)
    penstock.restore(module)
