"""What a process holds beyond its baseline: whose memory counts as the model's, and when free memory goes back."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from penstock import footprint
from penstock.footprint import Footprint, Memory, allocator_limits

MIB = 1 << 20
BUDGET = 128 * MIB


class Process:
    """A process whose memory the test decides."""

    def __init__(self) -> None:
        self.used = self.free_in_heap = self.peak = 0
        self.now = 0.0
        self.trims = self.resets = 0

    def read(self) -> Memory:
        held = self.used + self.free_in_heap
        self.peak = max(self.peak, held)
        return Memory(held, 0, self.peak)

    def reset(self) -> bool:
        self.resets += 1
        self.peak = self.used + self.free_in_heap
        return True

    def trim(self) -> None:
        self.trims += 1
        self.free_in_heap = 0


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    made = Process()
    monkeypatch.setattr(footprint, "read_memory", made.read)
    monkeypatch.setattr(footprint, "_anonymous_nbytes", lambda: made.used + made.free_in_heap)
    monkeypatch.setattr(footprint, "reset_peak", made.reset)
    monkeypatch.setattr(footprint, "return_free_memory", made.trim)
    monkeypatch.setattr(footprint, "perf_counter", lambda: made.now)
    return made


def run(process: Process, measured: Footprint, nbytes: int, *, room: int = 1000 * MIB) -> None:
    """A pass that takes `nbytes` and gives them back."""
    measured.enter(room)
    process.used += nbytes
    process.read()
    process.used -= nbytes


def test_what_a_pass_takes_is_its_peak(process: Process) -> None:
    measured = Footprint()
    run(process, measured, 30 * MIB)
    assert measured.peak_growth_nbytes() == 30 * MIB


def test_what_the_owner_allocates_between_passes_is_not_the_models(process: Process) -> None:
    measured = Footprint()
    run(process, measured, 30 * MIB)
    measured.leave()
    process.used += 500 * MIB
    run(process, measured, 31 * MIB)
    assert measured.peak_growth_nbytes() == 31 * MIB


def test_nor_what_the_owner_allocates_while_nothing_is_measured(process: Process) -> None:
    measured = Footprint()
    run(process, measured, 30 * MIB)
    measured.leave()
    measured.is_measuring = False
    process.used += 500 * MIB
    run(process, measured, 30 * MIB)
    measured.leave()
    measured.enter(1000 * MIB)
    measured.measure_again()
    process.used += 40 * MIB
    assert measured.peak_growth_nbytes() == 40 * MIB


def test_a_pass_that_is_refused_does_not_count_the_owners_memory_twice(process: Process) -> None:
    measured = Footprint()
    measured.leave()
    process.used += 100 * MIB
    measured.enter(1000 * MIB)  # and nothing runs
    run(process, measured, 10 * MIB)
    assert measured.peak_growth_nbytes() == 10 * MIB


def test_the_heap_is_trimmed_when_another_pass_would_not_have_room(process: Process) -> None:
    measured = Footprint()
    run(process, measured, 30 * MIB, room=40 * MIB)
    measured.leave()
    measured.is_measuring = False
    process.now += 1
    process.free_in_heap = 9 * MIB
    measured.enter(40 * MIB)
    assert process.trims == 0
    process.now += 1
    process.free_in_heap = 11 * MIB
    measured.enter(40 * MIB)
    assert process.trims == 1


def test_trimming_is_no_habit_where_the_owner_holds_the_memory(process: Process) -> None:
    measured = Footprint()
    run(process, measured, 30 * MIB, room=40 * MIB)
    measured.leave()
    measured.is_measuring = False
    process.used += 500 * MIB
    for _ in range(5):
        process.now += 1
        measured.enter(40 * MIB)
    assert process.trims == 1


def test_memory_is_looked_at_now_and_then_and_the_high_water_mark_left_alone(process: Process) -> None:
    measured = Footprint()
    run(process, measured, 30 * MIB)
    measured.leave()
    measured.is_measuring = False
    resets = process.resets
    process.free_in_heap = 2000 * MIB
    process.now += footprint.LOOK_SECONDS / 2
    measured.enter(40 * MIB)
    assert process.trims == 0
    process.now += footprint.LOOK_SECONDS
    measured.enter(40 * MIB)
    assert process.trims == 1
    assert process.resets == resets


def test_within_a_pass_free_memory_goes_back_before_there_is_too_much(process: Process) -> None:
    measured = Footprint()
    process.now, process.used, process.free_in_heap = 1.0, 20 * MIB, 10 * MIB
    measured.guard(lambda: 30 * MIB)
    assert process.trims == 0
    process.free_in_heap += MIB
    measured.guard(lambda: 30 * MIB)  # looked at a moment ago
    assert process.trims == 0
    process.now += footprint.GUARD_SECONDS
    measured.guard(lambda: 30 * MIB)
    assert process.trims == 1
    process.free_in_heap += 11 * MIB
    process.now += footprint.GIVEN_BACK_SECONDS * 0.9
    measured.guard(lambda: 30 * MIB)
    assert process.trims == 1
    process.now += footprint.GIVEN_BACK_SECONDS
    measured.guard(lambda: 30 * MIB)
    assert process.trims == 2


def test_where_giving_back_does_not_help_it_is_not_tried_soon_again(process: Process) -> None:
    measured = Footprint()
    process.now, process.used = 1.0, 40 * MIB
    for _ in range(10):
        measured.guard(lambda: 30 * MIB)
        process.now += footprint.USELESS_SECONDS / 10
    assert process.trims == 1
    measured.guard(lambda: 30 * MIB)
    assert process.trims == 2


def test_a_process_knows_what_it_has_come_to_hold(process: Process) -> None:
    process.used = 100 * MIB
    measured = Footprint()
    assert measured.growth_nbytes() == 0
    process.used += 7 * MIB
    assert measured.growth_nbytes() == 7 * MIB
    process.used -= 20 * MIB
    assert measured.growth_nbytes() == 0


def test_what_linux_counts_for_this_process_is_what_the_short_account_says() -> None:
    before = footprint._anonymous_nbytes()
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    assert footprint._anonymous_nbytes() - before > 60 * MIB


@pytest.mark.parametrize(
    ("budget", "mapped", "kept"),
    [
        (16 * MIB, 256 << 10, MIB),
        (64 * MIB, 2 * MIB, 32 * MIB),
        (256 * MIB, 8 * MIB, 128 * MIB),
        (1 << 40, 32 * MIB, 2**31 - 1),
    ],
)
def test_allocator_limits_follow_the_budget(budget: int, mapped: int, kept: int) -> None:
    assert allocator_limits(budget) == (mapped, kept)


PASS = """
import contextlib, ctypes, sys
from penstock import footprint

class HeapInfo(ctypes.Structure):  # of glibc's mallinfo2
    _fields_ = [(f"field{index}", ctypes.c_size_t) for index in range(8)]
    _fields_ += [("free", ctypes.c_size_t), ("top", ctypes.c_size_t)]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.mallinfo2.restype = HeapInfo

def holes():
    info = libc.mallinfo2()
    return info.free - info.top

footprint.retain_little(128 << 20)
before = holes()
libc.free(libc.malloc(3 << 20))  # the end of the heap is free
with footprint.without_holes() if sys.argv[1] == "first" else contextlib.nullcontext():
    tensors = []
    for _ in range(32):
        tensors.append(libc.malloc(1 << 20))
        libc.malloc(100 << 10)  # what a kernel keeps
    for tensor in tensors:
        libc.free(tensor)
print(holes() - before)
"""


def holes_nbytes(kind: str) -> int:
    """What the heap of a process keeps between used blocks after such a pass."""
    return int(subprocess.run([sys.executable, "-c", PASS, kind], capture_output=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_what_stays_of_a_first_pass_leaves_no_holes_in_the_heap() -> None:
    assert holes_nbytes("later") > 24 * MIB
    assert holes_nbytes("first") < 2 * MIB


def test_after_first_passes_the_last_budget_decides_again(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[int, int] = {}
    monkeypatch.setattr(footprint, "_limit", lambda option, nbytes: limits.update({option: nbytes}))

    def mapped() -> int:
        return limits[footprint._M_MMAP_THRESHOLD]

    footprint.retain_little(BUDGET)
    assert mapped() == allocator_limits(BUDGET)[0] > footprint.FIRST_MAPPED_NBYTES
    with footprint.without_holes():
        assert mapped() == footprint.FIRST_MAPPED_NBYTES
        with footprint.without_holes():
            footprint.retain_little(2 * BUDGET)  # of another stream
        assert mapped() == footprint.FIRST_MAPPED_NBYTES
    assert mapped() == allocator_limits(2 * BUDGET)[0]
