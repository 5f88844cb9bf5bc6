"""The planned pool: what it records, that it follows a plan, and that whatever departs is right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

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
from dataclasses import replace
import torch
sys.path.insert(0, {root!r})
import penstock
import penstock.training.planner
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
planner = sys.modules["penstock.training.planner"]
place = planner.plan_places
def gapped(*arguments):
    found = place(*arguments)
    higher = replace(found.places.placement, height=found.places.placement.height + 5 * MIB)
    return replace(found, places=replace(found.places, placement=higher))
planner.plan_places = gapped
again, more = run(within, inputs)  # a second block in the same process, whose addresses have gaps
placed = found[1].planner._placed
stats, swap = found[0].pool_stats, found[0]
print(json.dumps({{
    "is_same": losses == expected and same(plain, model) and more == expected and same(plain, again),
    "followed": stats.followed if stats else None, "taken": stats.taken if stats else None,
    "departed": stats.departed if stats else None, "swaps": len(swap.plan.swaps), "iterations": swap.stats.iterations,
    "again": found[1].pool_stats.followed if stats else None, "with_gaps": placed.total_nbytes if placed else None,
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
    assert found["with_gaps"] <= budget_mib << 20


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


RETIRED = """
import ctypes
import numpy as np
import torch
from penstock.training.pool import Pool
pool = Pool.preloaded()
one = np.array([1 << 20]), np.array([0])
first = pool.follow(1 << 20, *one)
block = torch.ones(1 << 18)
kept = block.data_ptr() == first.address
pool.follow(1 << 20, *one)
is_there = ctypes.string_at(first.address, 4) == b"\\0\\0\\x80?"
del block
print(kept, is_there, any(ctypes.string_at(first.address, 1 << 20)))
"""


@needs_compiler
def test_what_an_earlier_plan_left_goes_back_to_the_system_when_it_is_freed() -> None:
    environment = {**os.environ, "LD_PRELOAD": str(pool.library())}
    command = [sys.executable, "-c", RETIRED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, env=environment)
    assert done.stdout.split() == ["True", "True", "False"]


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
    assert found.again_nbytes == 0


def test_what_lives_until_the_next_one_is_there_lies_in_memory_twice() -> None:
    entries = [(MARKED, 0), (ALLOCATED, 4096)]
    for number in range(1, 4):
        entries += [(MARKED, number), (ALLOCATED, 4096), (RELEASED, number - 1)]
    found = read_lifetimes(np.array(entries, dtype=np.int64), 1, 4)
    assert found is not None
    assert found.lower.tolist() == found.upper.tolist()  # no place of its own
    assert found.again_nbytes == 4096


def test_what_is_there_when_the_recording_ends_is_as_the_one_before_it() -> None:
    """A batch that is made after the step, and replaces the one before."""
    entries = [(ALLOCATED, 4096)]
    for number in range(2):
        entries += [(MARKED, 2 * number), (MARKED, 2 * number + 1)]
        entries += [(ALLOCATED, 4096), (RELEASED, number)] if number == 0 else []
    found = read_lifetimes(np.array(entries, dtype=np.int64), 2, 4)
    assert found is not None
    assert found.nbytes.tolist() == [4096]
    assert found.again_nbytes == 4096


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


# -- on a CUDA device, for whose runtime a library over malloc stands in --

RUNTIME = """
#include <stdlib.h>
#include <sys/types.h>
int mallocs, frees;
int cudaMalloc(void **found, size_t nbytes) {
    if (nbytes > (size_t)1 << 30) return 2;
    __atomic_fetch_add(&mallocs, 1, __ATOMIC_RELAXED);
    return !(*found = malloc(nbytes));
}
int cudaFree(void *memory) {
    __atomic_fetch_add(&frees, 1, __ATOMIC_RELAXED);
    free(memory);
    return 0;
}
int here;
void drive(void *(*alloc)(ssize_t, int, void *), void **found, long count) { /* by two threads at once */
    for (__atomic_fetch_add(&here, 1, __ATOMIC_SEQ_CST); __atomic_load_n(&here, __ATOMIC_SEQ_CST) < 2;) {}
    for (long i = 0; i < count; i++) found[i] = alloc(4096, 0, NULL);
}
"""

DEVICE = """
import ctypes, json, sys
from concurrent.futures import ThreadPoolExecutor
runtime = ctypes.CDLL(sys.argv[2], ctypes.RTLD_GLOBAL) if len(sys.argv) > 2 else None
pool = ctypes.CDLL(sys.argv[1])
pool.penstock_cuda_alloc.restype = ctypes.c_void_p
pool.penstock_cuda_alloc.argtypes = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
pool.penstock_cuda_free.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
pool.penstock_cuda_seek.argtypes = [ctypes.c_int64]
ARENA, PAGE, plans = 0x1000_0000_0000, 4096, []  # nobody's memory: an arena is not to be touched

def alloc(nbytes, device=0, stream=None):
    return pool.penstock_cuda_alloc(nbytes, device, stream)

def free(*blocks):
    for block in blocks:
        pool.penstock_cuda_free(block, 0, 0, None)

def follow(begin, pages, blocks):
    plans.append([(ctypes.c_int64 * len(blocks))(*column) for column in zip(*blocks)])
    return pool.penstock_cuda_follow(
        ctypes.c_void_p(begin), ctypes.c_int64(pages * PAGE), *plans[-1], ctypes.c_int64(len(blocks)))

def pages(*blocks):  # of the arena; None: elsewhere
    return [(block - ARENA) / PAGE if ARENA <= block < ARENA + (1 << 32) else None for block in blocks]

def counts():
    found = (ctypes.c_int64 * 3)()
    pool.penstock_cuda_counts(*(ctypes.byref(found, 8 * index) for index in range(3)))
    return [*found]

def calls():
    return [ctypes.c_int.in_dll(runtime, name).value for name in ("mallocs", "frees")]

"""


def on_device(tmp_path: Path, lines: str, *, has_runtime: bool = True) -> Any:
    """What the last of `lines`, an expression, is in a process of its own."""
    argv = [str(pool.library())]
    if has_runtime:
        argv.append(str(tmp_path / "runtime.so"))
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
        build = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", argv[-1]]
        subprocess.run(build, input=RUNTIME.encode(), check=True)
    *before, last = textwrap.dedent(lines).strip().splitlines()
    code = DEVICE + "\n".join([*before, f"print(json.dumps({last}))"])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # where a runtime is installed, it has no device
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@needs_compiler
def test_device_blocks_get_their_planned_places_in_order_and_anew_in_each_iteration(tmp_path: Path) -> None:
    lines = """
        is_room = follow(ARENA, 4, [(5000, 2 * PAGE), (4096, 0), (5000, 0)])
        blocks = [alloc(5000), alloc(4096)]
        free(blocks[1])
        blocks.append(alloc(5000))
        pool.penstock_cuda_seek(0)
        free(blocks[0])
        blocks.append(alloc(5000))
        [is_room, pages(*blocks), counts(), calls()]
    """
    assert on_device(tmp_path, lines) == [1, [2, 0, 0, 2], [4, 0, 0], [0, 0]]


@needs_compiler
def test_what_departs_from_a_device_plan_gets_memory_of_the_runtime(tmp_path: Path) -> None:
    lines = """
        before = alloc(100)
        follow(ARENA, 4, [(5000, 0), (6000, PAGE), (7000, 3 * PAGE), (9000, -1), (8192, 2 * PAGE)])
        first = alloc(5000)
        departed = [alloc(size) for size in (5001, 6000, 7000, 9000)]  # unplanned; taken; beyond the end; no place
        elsewhere = [alloc(8192, device=1), alloc(8192, stream=7)]
        last = alloc(8192)
        [pages(first, last), pages(before, *departed, *elsewhere), counts(), calls()]
    """
    assert on_device(tmp_path, lines) == [[0, 2], [None] * 7, [2, 1, 2], [7, 0]]


@needs_compiler
def test_device_blocks_of_both_kinds_are_freed_even_after_their_plan(tmp_path: Path) -> None:
    lines = """
        follow(ARENA, 2, [(4096, 0), (4096, PAGE), (4096, 0)])
        planned, departed = [alloc(4096), alloc(4096)], alloc(100)
        free(planned[0], departed, None)
        between = calls()
        pool.penstock_cuda_leave()
        after = alloc(4096)
        follow(ARENA + (1 << 20), 2, [(4096, 0)])
        free(planned[1], after)
        [pages(*planned, after, alloc(4096)), between, calls()]
    """
    assert on_device(tmp_path, lines) == [[0, 1, None, 256], [1, 1], [2, 2]]


@needs_compiler
def test_threads_share_a_device_plan_and_no_place_is_given_twice(tmp_path: Path) -> None:
    lines = """
        count, found = 100_000, [(ctypes.c_void_p * 100_000)() for _ in range(2)]
        follow(ARENA, 2 * count, [(4096, index * PAGE) for index in range(2 * count)])
        drive = lambda given: runtime.drive(pool.penstock_cuda_alloc, given, ctypes.c_long(count))
        with ThreadPoolExecutor(2) as threads: list(threads.map(drive, found))
        [sorted(pages(*sum(map(list, found), []))) == [*range(2 * count)], calls()]
    """
    assert on_device(tmp_path, lines) == [True, [0, 0]]


@needs_compiler
def test_without_a_gpu_runtime_or_memory_of_it_there_is_none(tmp_path: Path) -> None:
    assert on_device(tmp_path, "[alloc(4096), free(None)]", has_runtime=False) == [None, None]
    assert on_device(tmp_path, "[alloc(1 << 31), alloc(0), alloc(-1), calls()]") == [None, None, None, [0, 0]]


@needs_compiler
def test_there_is_no_room_for_device_plans_without_end(tmp_path: Path) -> None:
    assert on_device(tmp_path, "[follow(ARENA, 1, [(4096, 0)]) for _ in range(257)]") == [1] * 256 + [0]
