"""What a recorded pass says, and that kept traces are checked when they come back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from penstock.errors import PlanError
from penstock.runtime.binding import BoundWeight
from penstock.trace import Trace, TracedCall

from .streaming import WIDTH, counted_memory, weight_nbytes
from .zoo import CASES, SEQUENCE, Block, X, tokens

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")

TRACE = Trace(
    ("a", "b", "c"),
    (TracedCall("", (0,), (), 0.5, 1), TracedCall("x.y", (1,), (2,), 0.25, 1, 7, "elemental")),
    1234,
    frozenset({1}),
    {2: 7},
    True,
    99,
)


def test_a_trace_comes_back_from_its_text() -> None:
    assert Trace.from_json(TRACE.to_json()) == TRACE


def changed(path: list[Any], value: Any) -> str:
    fields = json.loads(TRACE.to_json())
    place = fields
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        changed(["version"], 99),
        changed(["weights"], 3),
        changed(["calls"], None),
        changed(["calls", 0, "reads"], [5]),
        changed(["calls", 0, "reads"], ["a"]),
        changed(["calls", 0, "last"], 2),
        changed(["calls", 0, "seconds"], -1),
        changed(["calls", 0, "seconds"], float("nan")),
        changed(["activations_nbytes"], -1),
        changed(["calls", 0, "live_nbytes"], -1),
        changed(["calls", 0, "kind"], "fast"),
        changed(["calls", 0, "kind"], None),
        changed(["activations_nbytes"], "many"),
        changed(["single_row"], [3]),
        changed(["row_counts"], [[0, -4]]),
        changed(["overhead_nbytes"], None),
        changed(["ebbing_nbytes"], -1),
    ],
)
def test_a_damaged_trace_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="record it again"):
        Trace.from_json(text)


def trace_of(module: nn.Module, *args: Any) -> tuple[Trace, list[BoundWeight]]:
    """The trace of a call, taken without computing it."""
    penstock.stream(module, budget="64MiB")
    handle = penstock.inspect(module)
    with torch.inference_mode():
        trace = handle._provision.dry(args, {})
    weights = handle.weights
    penstock.restore(module)
    assert trace is not None
    return trace, weights


def reads(trace: Trace) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for call in trace.calls:
        found.setdefault(call.module, set()).update(trace.weights[index] for index in (*call.reads, *call.row_reads))
    return found


def test_weights_read_without_calling_their_owner_belong_to_the_reader() -> None:
    trace, _ = trace_of(CASES["attention"].build(), SEQUENCE)
    assert {f"attention.{name}" for name in ("in_proj_weight", "out_proj.weight")} <= reads(trace)["attention"]
    trace, _ = trace_of(CASES["weights of others"].build(), X)
    assert {f"layers.{index}.weight" for index in range(4)} <= reads(trace)[""]


def test_tied_weights_are_one_weight_read_twice() -> None:
    trace, weights = trace_of(CASES["tied table and head"].build(), tokens(1))
    assert len([weight for weight in weights if "embed" in weight.name or "head" in weight.name]) == 1
    assert reads(trace)["head"] == {"embed.weight"}
    assert trace.calls[0].module == "embed"
    assert trace.calls[0].reads == ()
    assert trace.row_counts == {trace.weights.index("embed.weight"): 10}


def test_a_shared_block_is_called_as_often_as_it_runs() -> None:
    trace, _ = trace_of(CASES["shared blocks"].build(), X)
    assert [call.module for call in trace.calls].count("shared.first") == 3


def test_a_layer_around_others_lasts_until_they_have_ended() -> None:
    trace, _ = trace_of(CASES["weights around children"].build(), X, False)
    assert trace.calls[0].module == ""
    assert trace.calls[0].last == len(trace.calls) - 1


def test_activations_are_the_tensors_of_the_pass_and_not_its_weights() -> None:
    module = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(4)])
    trace, _ = trace_of(module, X)
    assert 3 * WIDTH * 4 <= trace.activations_nbytes <= 4 * 3 * WIDTH * 4 < weight_nbytes(module)


def test_each_layer_knows_what_lives_while_it_runs() -> None:
    wide = nn.Sequential(nn.Linear(160, 4000), nn.ReLU(), nn.Linear(4000, 160), nn.Linear(160, 160))
    trace, _ = trace_of(wide, X)
    live = [call.live_nbytes for call in trace.calls]
    rows = X.numel() // X.shape[-1]
    assert live[0] == max(live) == trace.activations_nbytes
    assert live[0] >= 2 * rows * 4000 * 4  # before and after the activation function
    assert live[2] < rows * 4000 * 4


class Kinds(nn.Module):
    """A layer of every class, one of them a normalisation written out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 2, 32, batch_first=True)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.group_norm = nn.GroupNorm(1, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.layer_norm = nn.LayerNorm(32)
        self.by_hand = RootMeanSquare()
        self.prelu = nn.PReLU()
        self.linear = nn.Linear(32, 32)
        self.scale = nn.Parameter(torch.ones(32))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.encoder(self.table(ids))
        x = self.attention(x, x, x)[0]
        x = self.prelu(self.by_hand(self.layer_norm(self.conv(self.group_norm(x)))))
        return self.linear(x) * self.scale


class RootMeanSquare(nn.Module):
    """As transformers writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def test_a_layer_is_of_the_class_of_the_operations_that_read_its_weights() -> None:
    trace, _ = trace_of(Kinds().eval(), torch.arange(4).view(1, 4))
    assert {call.module: call.kind for call in trace.calls} == {
        "": "elemental",
        "table": "elemental",
        "encoder": "reusable",
        "attention": "reusable",
        "group_norm": "hierarchical",
        "conv": "reusable",
        "layer_norm": "hierarchical",
        "by_hand": "hierarchical",
        "prelu": "elemental",
        "linear": "reusable",
    }


def test_weights_that_multiply_one_row_are_marked() -> None:
    module = nn.Sequential(Block(), Block())
    assert trace_of(module, X)[0].single_row == frozenset()
    trace, _ = trace_of(module, X[:1])
    assert {trace.weights[index] for index in trace.single_row} >= {"0.first.weight", "1.second.weight"}


def test_the_second_pass_measures_what_the_first_could_only_estimate() -> None:
    module = nn.Sequential(Block(), Block(), Block())
    penstock.stream(module, budget="4MiB", example=X)
    handle = penstock.inspect(module)
    with torch.inference_mode():
        for _ in range(5):
            module(X)
    trace = handle._provision.admission.primary
    penstock.restore(module)
    assert trace is not None
    assert trace.is_timed
    assert all(call.seconds > 0 for call in trace.calls)
