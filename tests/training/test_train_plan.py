"""`penstock train-plan`: an iteration of a script recorded, and what any budget would cost it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.cli.app import run_app

SCRIPT = """
import sys
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.GELU())))
optimizers = [torch.optim.SGD(half.parameters(), lr=0.1, momentum=0.9) for half in (model[:4], model[4:])]

def train(steps):
    for step in range(steps):
        print("step", step, sys.argv[1:])
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(4096, 256)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
"""


def make(folder: Path, then: str) -> str:
    script = folder / "train_it.py"
    script.write_text(SCRIPT + then)
    return str(script)


def recorded(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run_app(["train-plan", *arguments, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_a_script_that_knows_nothing_of_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script, files = make(tmp_path, "train(100)\nraise SystemExit('never')\n"), [tmp_path / "a.png", tmp_path / "a.html"]
    drawn = ("--picture", str(files[0]), "--page", str(files[1]), "--timeline", str(tmp_path / "a.json"))
    found = recorded(capfd, script, "--budget", "32MiB", *drawn)
    curve, plan = found["curve"], found["plan"]
    assert curve["task"] == "training"
    assert curve["model"] == "train_it.py"
    assert {point["strategy"] for point in curve["points"]} == {"best", "doa", "aoa", "wdoa", "swdoa"}
    budgets = sorted({point["budget_nbytes"] for point in curve["points"]})
    assert len(budgets) >= 8
    assert budgets[0] < curve["full_nbytes"] / 2  # of eight activations few are needed at once
    assert plan["swaps"]
    assert plan["peak_nbytes"] <= plan["limit_nbytes"] < 32 << 20 < plan["full_peak_nbytes"]
    assert all(file.stat().st_size for file in files)
    events = json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    assert {event.get("cat") for event in events} >= {"compute", "storage", "passes"}


def test_what_a_script_could_do_besides(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wide = tmp_path / "wide.py"
    wide.write_text((SCRIPT + "train(100)\n").replace("(256, 256)", "(768, 768)").replace("(4096, 256)", "(64, 768)"))
    least = []
    for ways in ([], ["--parameters"], ["--atomic-steps"]):
        points = recorded(capfd, str(wide), *ways)["curve"]["points"]
        least.append(min(point["budget_nbytes"] for point in points))
    assert least[0] > 1.2 * least[1]
    assert least[2] > 1.05 * least[0]


@pytest.mark.parametrize("ways", ["", "recompute"])
def test_a_record_has_what_could_be_computed_again_if_asked(tmp_path: Path, ways: str) -> None:
    script, result = make(tmp_path, "train(100)\n"), tmp_path / "record.json"
    command = [sys.executable, "-m", "penstock.training.recording", str(result), ways, script]
    subprocess.run(command, check=True, timeout=100, stdout=subprocess.DEVNULL)
    assert bool(json.loads(result.read_text())["recomputable"]) == bool(ways)


def test_a_script_with_a_block_of_its_own_and_arguments(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = "import penstock\nwith penstock.autoswap(model, optimizers, budget='1KiB'):\n    train(100)\n"
    assert run_app(["train-plan", make(tmp_path, own), "--", "--lr", "3"]) == 0
    said = capfd.readouterr()
    assert "step 3 ['--lr', '3']" in said.err
    assert "iteration in ms, by budget" in said.out
    assert "step" not in said.out


def test_a_budget_that_is_too_small_names_one_that_works(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script, picture = make(tmp_path, "train(100)\n"), tmp_path / "a.png"
    assert run_app(["train-plan", script, "--budget", "1MiB", "--json", "--picture", str(picture)]) == 2
    refusal = json.loads(capfd.readouterr().out)
    assert 2 << 20 < refusal["needed_nbytes"] < 32 << 20  # four activations of 4 MiB at once
    assert "set a budget of" in refusal["error"]
    assert picture.stat().st_size  # which shows what would work


@pytest.mark.parametrize(
    ("then", "says"),
    [
        ("train(1)\nsys.exit(0)\n", "ended before two of its iterations were alike"),
        ("train(1)\n", "ended before two of its iterations were alike"),
        ("train(2)\nraise ValueError('mine')\n", "failed (exit code 1)"),
    ],
)
def test_scripts_of_which_nothing_can_be_recorded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], then: str, says: str
) -> None:
    assert run_app(["train-plan", make(tmp_path, then)]) == 2
    assert says in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.py"], "missing.py: no such file"),
        ([__file__, "--timeline", "x.json"], "--timeline is of one budget"),
        ([__file__, "--budget", "1 potato"], "potato"),
        ([__file__, "--picture", "x.gif"], "ends in .png or .svg"),
        ([__file__, "--budget", "1GiB", "--timeline", "/nowhere/x.json"], "not a folder that can be written to"),
        ([], "SCRIPT"),
    ],
)
def test_bad_arguments_are_refused_before_the_script_runs(
    capfd: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert run_app(["train-plan", *arguments]) == 2
    assert says in capfd.readouterr().err
