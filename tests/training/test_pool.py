"""The planned pool: what it records, that it follows a plan, and that whatever departs is right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from penstock.planning.swap_plan import Swap, SwapPlan
from penstock.training import pool
from penstock.training.lifetimes import plan_pool, read_lifetimes
from penstock.training.pool import ALLOCATED, MARKED, RELEASED, Pool

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is installed"
)

CHILD = """
import json, sys
import torch
sys.path.insert(0, {root!r})
import penstock
from tests.training.loops import batches, make, same, step, train
torch.set_num_threads(2)
MIB = 1 << 20

def run(within, inputs):
    model, optimizer = make()
    return model, train(model, optimizer, inputs, within(model, optimizer) if within else None)

inputs = [*batches(9), *batches(1, 4096), *batches(4)]
plain, expected = run(None, inputs)
found = []
def within(model, optimizer):
    found.append(penstock.autoswap(model, optimizer, budget=int(sys.argv[1]) * MIB))
    return found[-1]
model, losses = run(within, inputs)
again, more = run(within, inputs)  # a second block in the same process
stats, swap = found[0].pool_stats, found[0]
print(json.dumps({{
    "is_same": losses == expected and same(plain, model) and more == expected and same(plain, again),
    "followed": stats.followed if stats else None, "taken": stats.taken if stats else None,
    "departed": stats.departed if stats else None, "swaps": len(swap.plan.swaps), "iterations": swap.stats.iterations,
    "again": found[1].pool_stats.followed if stats else None,
}}))
"""


def run_child(budget_mib: int, *, preload: bool = True) -> dict[str, int]:
    environment = {**os.environ, "LD_PRELOAD": str(pool.library())} if preload else dict(os.environ)
    command = [sys.executable, "-c", CHILD.format(root=str(ROOT)), str(budget_mib)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int] = json.loads(done.stdout)
    return found


@needs_compiler
@pytest.mark.parametrize("budget_mib", [200, 38])
def test_an_iteration_in_the_pool_is_the_same_to_the_last_bit(budget_mib: int) -> None:
    found = run_child(budget_mib)
    assert found["is_same"]
    assert found["followed"] > 40 * found["iterations"] // 2
    assert found["again"] > 0
    assert bool(found["swaps"]) == (budget_mib < 100)
    assert found["departed"] < found["followed"] // 2  # of the short batch


def test_without_the_pool_there_is_none() -> None:
    assert Pool.preloaded() is None
    found = run_child(200, preload=False)
    assert found["is_same"]
    assert found["followed"] is None


def test_without_a_compiler_there_is_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pool.CompilerMissingError, match="install one"):
        pool.library()


@needs_compiler
def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    (tmp_path / "cc").write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(pool.CompilerMissingError, match="broken"):
        pool.library()


@needs_compiler
def test_exec_runs_a_program_with_the_pool() -> None:
    code = "from penstock.training.pool import Pool; print(Pool.preloaded() is not None)"
    command = [sys.executable, "-c", "from penstock.cli import main; main()", "exec", "--", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "True"


# -- what is read of a recording --


def recording() -> np.ndarray:  # type: ignore[type-arg]
    """Three iterations of two segments: a block within the first, one over both, one into the next iteration."""
    entries = []
    for number in range(3):
        first = 3 * number
        entries += [(MARKED, 2 * number), (ALLOCATED, 4096), (ALLOCATED, 8192)]
        if number:
            entries.append((RELEASED, first - 1))
        entries += [(RELEASED, first), (MARKED, 2 * number + 1), (ALLOCATED, 12288), (RELEASED, first + 1)]
    return np.array(entries, dtype=np.int64)


def test_lifetimes_are_read_from_the_last_iteration_but_one() -> None:
    found = read_lifetimes(recording(), 2, 6)
    assert found is not None
    assert found.nbytes.tolist() == [4096, 8192, 12288]
    assert found.period == 8
    assert found.lower.tolist() == [1, 2, 6]
    assert found.upper.tolist() == [4, 7, 11]  # the last one is released in the next iteration
    assert found.marks.tolist() == [0, 5, 8]
    assert found.first_allocations == [0, 2]
    assert found.segment_peaks().tolist() == [4096 + 8192 + 12288, 8192 + 12288]


def test_iterations_that_are_not_alike_to_the_allocator_are_none() -> None:
    entries = recording()
    entries[-2, 1] = 4096
    assert read_lifetimes(entries, 2, 6) is None
    assert read_lifetimes(entries[:3], 2, 6) is None


def test_a_block_that_leaves_has_two_places_and_none_overlap() -> None:
    found = read_lifetimes(recording(), 2, 6)
    assert found is not None
    plan = SwapPlan((Swap(0, 8192, 1, 1, 1, 2),), 2, "search", 0, 0, 0, 0.0, 0.0, 0.0)
    made = plan_pool(found, plan, [1], [2])
    assert (made.offsets >= 0).all()
    assert len(made.returns) == 1
    assert made.placement.load >= 8192 + 12288
    places = [(int(o), int(o) + int(n)) for o, n in zip(made.offsets, made.nbytes, strict=True)]
    assert places[0][1] <= places[1][0] or places[1][1] <= places[0][0]  # both live in the first segment
    back = made.returns[0], made.returns[0] + 8192
    assert back[1] <= places[2][0] or places[2][1] <= back[0]  # and these in the second


def test_what_lives_on_for_longer_than_an_iteration_has_no_place() -> None:
    entries = recording()
    entries = entries[~((entries[:, 0] == RELEASED) & (entries[:, 1] == 4))]
    found = read_lifetimes(entries, 2, 6)
    assert found is not None
    plan = SwapPlan((), 2, "search", 0, 0, 0, 0.0, 0.0, 0.0)
    assert plan_pool(found, plan, [], []).offsets.tolist()[1] == -1
