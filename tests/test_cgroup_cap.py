"""The budget is physical: a process in a memory cgroup of its baseline plus the budget lives through passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from penstock.cgroup import unavailable_reason

LAYERS, WIDTH = 24, 1024  # 96 MiB of weights
WEIGHTS_NBYTES = LAYERS * WIDTH * WIDTH * 4
BUDGET_NBYTES = 24 << 20
SLACK_NBYTES = 4 << 20

CHILD = """
import os, sys
import torch
from torch import nn
from penstock.cgroup import memory_group
import penstock, penstock.dryrun, torch._subclasses.fake_tensor

torch.set_num_threads(2)
path, budget, slack, streams = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "stream"
x = torch.randn(8, {width}, generator=torch.Generator().manual_seed(0))
with torch.device("meta"):
    module = nn.Sequential(*[nn.Linear({width}, {width}, bias=False) for _ in range({layers})])
warm = nn.Linear({width}, {width}, bias=False)
with torch.inference_mode():
    warm(x)  # threads and buffers of the kernels are nobody's weights
del warm
small = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(3)])
penstock.stream(small, budget="8MiB", example=torch.zeros(1, 64))
penstock.restore(small)

with memory_group() as group:
    # What is charged to a group before this process enters stays there: from here on only what is new counts.
    group.enter()
    group.set_limit(budget + slack)
    if streams:
        penstock.stream(module, path, budget=budget)
    else:
        from safetensors.torch import load_file
        module.to_empty(device="cpu").load_state_dict(load_file(path))
    with torch.inference_mode():
        for _ in range(4):
            result = module(x)
    if streams:
        assert penstock.inspect(module).plan.loads
        print(group.peak_nbytes(), result.double().sum().item())
        penstock.inspect(module).close()
    else:
        print(group.peak_nbytes(), result.double().sum().item())
    group.set_limit(None)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = torch.Generator().manual_seed(1)
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    save_file({f"{i}.weight": torch.randn(WIDTH, WIDTH, generator=chance) / 32 for i in range(LAYERS)}, path)
    return path


def run_child(checkpoint: Path, how: str) -> subprocess.CompletedProcess[str]:
    script = CHILD.format(width=WIDTH, layers=LAYERS)
    arguments = [str(checkpoint), str(BUDGET_NBYTES), str(SLACK_NBYTES), how]
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module", autouse=True)
def _needs_a_cgroup() -> None:
    reason = unavailable_reason()
    if reason is not None:
        pytest.skip(reason)


def test_a_streamed_model_lives_in_a_fraction_of_its_weights(checkpoint: Path) -> None:
    done = run_child(checkpoint, "stream")
    assert done.returncode == 0, done.stderr[-2000:]
    peak_nbytes = int(done.stdout.split()[0])
    assert peak_nbytes <= BUDGET_NBYTES + SLACK_NBYTES < WEIGHTS_NBYTES // 3


def test_the_same_cap_kills_the_resident_model(checkpoint: Path) -> None:
    """Or the test above would prove nothing."""
    assert run_child(checkpoint, "resident").returncode == -9
