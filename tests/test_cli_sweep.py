"""`penstock plan --sweep` and the timelines: what they write, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from penstock.budget import parse_size
from penstock.cli.app import run_app
from penstock.planning.strategies import get, names
from penstock.report import Curve

from .report.test_drawings import without
from .report.traces import spans_of
from .tiny_models import write_bert, write_qwen

Fails = Callable[..., str]
Answers = Callable[..., dict[str, object]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def counted_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process itself takes differs by a little from one call to the next."""
    monkeypatch.setattr("penstock.footprint.read_memory", lambda: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "x", "--sweep", "--budget", "1MiB"], "--sweep"),
        (["plan", "x", "--sweep", "--timeline", "t.json"], "--timeline"),
        (["plan", "x", "--budget", "1MiB", "--picture", "c.png"], "--picture goes with --sweep"),
        (["plan", "x", "--budget", "1MiB", "--page", "c.html"], "--page goes with --sweep"),
        (["plan", "x", "--budget", "1MiB", "--measure"], "--measure goes with --sweep"),
        (["plan", "x", "--budget", "1MiB", "--strategy", "a", "--strategy", "b"], "--strategy"),
        (["plan", "x", "--sweep", "--picture", "c.gif"], ".png or .svg"),
        (["plan", "x", "--sweep", "--page", "c.pdf"], ".html"),
        (["plan", "x", "--sweep", "--picture", "nowhere/c.png"], "nowhere"),
        (["plan", "x", "--sweep", "--page", "nowhere/c.html"], "nowhere"),
        (["plan", "x", "--budget", "1MiB", "--timeline", "nowhere/t.json"], "nowhere"),
        (["run", "x", "--budget", "1MiB", "--prompt", "a", "--timeline", "nowhere/t.json"], "nowhere"),
    ],
)
def test_options_that_contradict_each_other_are_told_in_one_line(
    fails: Fails, arguments: list[str], message: str
) -> None:
    assert message in fails(*arguments)


@pytest.mark.parametrize("drawing", [["--picture", "c.png"], ["--page", "c.html"]], ids=" ".join)
def test_a_drawing_without_its_package_is_refused_before_anything_is_planned(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, drawing: list[str]
) -> None:
    without(monkeypatch, "matplotlib", "plotly")
    assert "pip install 'penstock[report]'" in fails("plan", "/nowhere", "--sweep", *drawing)


def test_a_strategy_that_does_not_exist_is_told_in_one_line(fails: Fails, bert: Path) -> None:
    assert "fastest" in fails("plan", bert, "--sweep", "--strategy", "fastest")


def test_a_sweep_is_json_that_reads_back_with_every_strategy_from_the_least_budget_on(
    answers: Answers, bert: Path
) -> None:
    curve = Curve.from_json(json.dumps(answers("plan", bert, "--sweep", "--tokens", "16")))
    assert curve.model == "BertModel, input_ids 1×16"
    assert curve.strategies == names()
    assert 10 <= len(curve.budgets) <= 17
    assert not curve.is_timed
    least = str(curve.budgets[0])
    assert run_app(["plan", str(bert), "--budget", least, "--tokens", "16", "--strategy", first_of(curve)]) == 0


def first_of(curve: Curve) -> str:
    return next(point.strategy for point in curve.points if point.predicted_seconds is not None)


def test_a_sweep_is_a_table_a_picture_and_a_page(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, bert: Path
) -> None:
    drawings = ["--picture", str(tmp_path / "curve.svg"), "--page", str(tmp_path / "curve.html")]
    default = get("auto").name
    assert run_app(["plan", str(bert), "--sweep", "--tokens", "16", "--strategy", default, *drawings]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert default in out
    assert "Least budget" in out
    shown = [line.strip("│ ").split("│")[0].strip() for line in out.splitlines() if line.startswith("│")]
    assert parse_size(shown[0]) < parse_size(shown[-1])
    assert "BertModel, input_ids 1×16" in (tmp_path / "curve.svg").read_text()
    assert "BertModel, input_ids 1×16" in (tmp_path / "curve.html").read_text()


def test_measured_points_are_medians_of_real_passes(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, bert: Path
) -> None:
    monkeypatch.setattr("penstock.report.measured.POINTS", 2)
    answer = answers("plan", bert, "--sweep", "--measure", "--tokens", "16", "--strategy", "auto")
    curve = Curve.from_json(json.dumps(answer))
    assert curve.is_timed
    assert curve.strategies == (get("auto").name,)
    measured = [point.budget_nbytes for point in curve.points if point.measured_seconds]
    assert len(measured) == 2, curve.remarks
    assert measured[-1] == curve.budgets[-1]


def test_the_timeline_of_a_plan_is_a_trace_of_its_first_passes(tmp_path: Path, bert: Path) -> None:
    file = tmp_path / "timeline.json"
    assert run_app(["plan", str(bert), "--budget", "12MiB", "--timeline", str(file)]) == 0
    spans = spans_of(json.loads(file.read_text()))
    assert [span["name"] for span in spans["passes"]] == ["pass 1 (cold)", "pass 2", "pass 3"]
    assert any("encoder.layer.3.output.dense.weight" in span["name"] for span in spans["storage"])
    assert "encoder.layer.3.output.dense" in {span["name"] for span in spans["compute"]}


def test_the_timeline_of_a_run_is_a_trace_of_what_it_did(answers: Answers, tmp_path: Path, bert: Path) -> None:
    save_file({"input_ids": torch.arange(32).view(2, 16)}, tmp_path / "inputs.safetensors")
    where = ["--inputs", tmp_path / "inputs.safetensors", "--outputs", tmp_path / "outputs.safetensors"]
    answer: Any = answers("run", bert, "--budget", "12MiB", *where, "--timeline", tmp_path / "timeline.json")
    spans = spans_of(json.loads((tmp_path / "timeline.json").read_text()))
    (one,) = spans["passes"]
    assert one["dur"] / 1e6 <= answer["seconds"]
    loaded = {span["name"] for name, track in spans.items() if name.startswith("storage") for span in track}
    assert any("encoder.layer.3.output.dense.weight" in name for name in loaded)
    stalled = sum(span["dur"] for span in spans["stalls"]) / 1e6
    assert stalled >= answer["stats"]["stall_seconds"] * 0.99


def test_the_timeline_of_a_text_has_a_pass_for_each_token(answers: Answers, tmp_path: Path) -> None:
    qwen, file = write_qwen(tmp_path / "qwen"), tmp_path / "timeline.json"
    answers("run", qwen, "--budget", "24MiB", "--prompt", "hello", "--max-new-tokens", "5", "--timeline", file)
    spans = spans_of(json.loads(file.read_text()))
    assert [span["name"] for span in spans["passes"]] == [f"pass {number}" for number in range(1, 6)]
