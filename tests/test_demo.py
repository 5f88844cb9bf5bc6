"""The demo finds what a person would, keeps its promises, and says when it does not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import NoReturn

import pytest
import torch
import transformers

from penstock import demo
from penstock.arms import ArmError, ArmSpec
from penstock.cache import cache_dir
from penstock.cli.app import run_app
from penstock.demo import DemoResult, Hit, Measured
from penstock.demo_models import VIT_LARGE, write_random_vit

SMALL = {**VIT_LARGE, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
KEPT = Measured("a model", 100, 50, 50, "cgroup", 1.0, 1.5, 1e9, identical=True)
RANKING = {"a query": (Hit(0.5, "a sentence"),)}


def test_the_demo_finds_what_a_person_would_and_keeps_its_promises() -> None:
    steps: list[tuple[str, int, int]] = []
    result = demo.run_demo(lambda *step: steps.append(step), rounds=2, large=SMALL, large_budget="64MiB")
    best = {query: hits[0].sentence for query, hits in result.ranking.items()}
    assert best["When does public transport run?"].startswith("The bus")
    assert best["What helps when I am feeling ill?"].startswith("Drink plenty of water")
    assert all(model.identical for model in result.models)
    assert [model.peak_nbytes <= model.budget_nbytes for model in result.models] == [True, True]
    assert result.passed
    assert {title for title, _, _ in steps} >= {"measuring storage", *(model.title for model in result.models)}


@pytest.mark.parametrize(
    ("broken", "said"),
    [({}, None), ({"identical": False}, "no"), ({"peak_nbytes": 51}, "OVER BUDGET")],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_broken_promise_is_said_and_is_the_exit_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    broken: dict[str, object],
    said: str | None,
    as_json: bool,
) -> None:
    models = (KEPT, dataclasses.replace(KEPT, **broken))  # type: ignore[arg-type]
    monkeypatch.setattr("penstock.cli.demo.run_demo", lambda _: DemoResult(RANKING, models))
    assert run_app(["demo", *(["--json"] if as_json else [])]) == (1 if broken else 0)
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["passed"] is not bool(broken)
    else:
        assert "a sentence" in out
        assert said is None or said in out


def test_the_bits_that_the_demo_promises_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ArmSpec] = []

    def refuse(specs: Sequence[ArmSpec]) -> NoReturn:
        asked.extend(specs)
        raise ArmError("not today")

    monkeypatch.setattr("penstock.demo.open_arms", refuse)
    with pytest.raises(ArmError):
        demo.run_demo(lambda *step: None, rounds=2, large=SMALL, large_budget="64MiB")
    assert [(spec.budget_nbytes is not None, spec.exact) for spec in asked] == [(True, True)]


def test_the_large_model_is_written_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_random_vit(SMALL, "test-vit")
    model = transformers.ViTModel.from_pretrained(folder)
    assert torch.isfinite(model.pooler.dense.weight).all()
    assert model.layernorm.weight.eq(1).all()
    assert model.layers[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    written = (folder / "model.safetensors").stat()
    assert write_random_vit(SMALL, "test-vit") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written.st_mtime_ns


@pytest.mark.parametrize("damage", ["truncated", "another model"])
def test_a_large_model_that_is_not_whole_is_written_again(damage: str) -> None:
    folder = write_random_vit(SMALL, "test-vit-damaged")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(whole[:-1])
    else:
        (folder / "config.json").write_text("{}")
    write_random_vit(SMALL, "test-vit-damaged")
    assert weights.read_bytes() == whole


def test_an_interrupt_while_the_large_model_is_written_leaves_no_half_of_it() -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_random_vit(SMALL, "test-vit-interrupted", interrupt)
    assert list((cache_dir() / "models" / "test-vit-interrupted").iterdir()) == []
