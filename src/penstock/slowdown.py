"""How much operators slow down while storage is read beside them, as the runtime reads: the samples of a regression.

What FlashMem (arXiv 2602.15379, section on load capacity) measures inside a mobile GPU's kernels is here what the
reader threads and their transfers take from the computing threads: time on the cores, and memory bandwidth.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

import torch

from penstock.probe import Probe, Progress, anonymous_memory
from penstock.runtime.devices.cpu_queue import READ_NBYTES, THREADS
from penstock.workloads import Operator

_T = TypeVar("_T")

LOAD_SHARES = (0.0, 0.25, 0.5, 0.75, math.inf)
"""Of the bandwidth. Zero measures what measuring itself does to a number: noise. Infinite: as fast as storage gives."""

_MEMORY_NBYTES = 64 << 20  # beyond what caches hold, as an arena is
_DISTURBED, _DISTURBED_SECONDS = 2.0, 3e-4
"""A call longer than so many times the fastest and so many seconds was disturbed. So slowdowns far beyond 100 % are not
seen; direct reads cause none."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One operator beside loads of one rate.

    Attributes:
        kind: its class.
        operator: its name; samples of one name are no independent witnesses.
        seconds: that it takes alone.
        weight_nbytes: of weights that it reads.
        nbytes: that it touches in all.
        flops: of arithmetic.
        load_bytes_per_second: that were really loaded beside it.
        slowdown: how much longer it took, as a part of `seconds`; about zero or above.
    """

    kind: str
    operator: str
    seconds: float
    weight_nbytes: int
    nbytes: int
    flops: int
    load_bytes_per_second: float
    slowdown: float


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure each operator.

    Attributes:
        window_seconds: without a change between loads and none.
        seconds: in all; `most_seconds` where other programs disturb.
        calls: undisturbed ones that a sample takes; with fewer than a third there is none.
    """

    window_seconds: float = 0.012
    seconds: float = 2.5
    most_seconds: float = 5.0
    calls: int = 30


def measure_slowdowns(
    probe: Probe,
    operators: Sequence[Operator],
    bytes_per_second: float,
    effort: Effort,
    *,
    progress: Progress | None = None,
) -> list[Sample]:
    """A sample for every operator and every one of `LOAD_SHARES` of `bytes_per_second`, if other programs let it.

    Windows with loads alternate with windows without, so that what drifts cancels. A call that takes twice as long as
    the fastest one and a third of a millisecond has lost a core to another program for a time slice, which a reader
    never takes, and does not count: kernels on all cores wait for their slowest thread, so such a call says nothing.

    Raises:
        OSError: a read failed.
    """
    samples: list[Sample] = []
    with torch.inference_mode(), anonymous_memory(_MEMORY_NBYTES) as memory, memoryview(memory) as view:
        loads = _Loads(probe, view)
        loads.touch()
        for index, operator in enumerate(operators):
            samples += _measure_one(operator, loads, bytes_per_second, effort)
            if progress is not None:
                progress(index + 1, len(operators))
    return samples


@dataclass(slots=True)
class _Calls:
    """What calls took, beside loads of one rate and in the windows after those, and the rates that it came to."""

    beside: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def undisturbed(self, limit_seconds: float) -> tuple[list[float], list[float]]:
        """Beside loads and alone, those of at most `limit_seconds`."""
        return [one for one in self.beside if one <= limit_seconds], [one for one in self.alone if one <= limit_seconds]


def _measure_one(operator: Operator, loads: _Loads, bytes_per_second: float, effort: Effort) -> list[Sample]:
    compute, window_seconds = operator.build(), effort.window_seconds
    _time_calls(compute, window_seconds)  # warms up
    table = {share: _Calls() for share in LOAD_SHARES}
    began = perf_counter()
    for turn in itertools.cycle(range(len(LOAD_SHARES))):  # no rate always follows the same one
        for share in LOAD_SHARES[turn:] + LOAD_SHARES[:turn]:
            calls = table[share]
            seconds, rate = loads.beside(share * bytes_per_second, lambda: _time_calls(compute, window_seconds))
            calls.beside += seconds
            calls.rates.append(rate)
            calls.alone += _time_calls(compute, window_seconds)
        limit = _DISTURBED * min(min(calls.beside + calls.alone) for calls in table.values()) + _DISTURBED_SECONDS
        kept = {share: calls.undisturbed(limit) for share, calls in table.items()}
        is_enough = all(min(len(beside), len(alone)) >= effort.calls for beside, alone in kept.values())
        if perf_counter() > began + (effort.seconds if is_enough else effort.most_seconds):
            break
    every = [one for _, alone in kept.values() for one in alone]
    return [
        Sample(
            operator.kind,
            operator.name,
            statistics.median(every),
            operator.weight_nbytes,
            operator.nbytes,
            operator.flops,
            statistics.median(table[share].rates),
            statistics.fmean(beside) / statistics.fmean(alone) - 1,
        )
        for share, (beside, alone) in kept.items()
        if 3 * min(len(beside), len(alone)) >= effort.calls
    ]


def _time_calls(compute: Callable[[], object], window_seconds: float) -> list[float]:
    """What each call takes, as many as the window has room for."""
    seconds: list[float] = []
    began = last = perf_counter()
    while last < began + window_seconds:
        compute()
        now = perf_counter()
        seconds.append(now - last)
        last = now
    return seconds


class _Loads:
    """Direct reads into memory from as many threads as the runtime has, at a given rate."""

    def __init__(self, probe: Probe, memory: memoryview) -> None:
        self._probe, self._memory = probe, memory
        self._read_nbytes = min(READ_NBYTES, probe.nbytes)
        self._numbers = itertools.count()  # shared by the threads: `next` on it is atomic

    def touch(self) -> None:
        """Has all of the memory there."""
        for _ in range(len(self._memory) // self._read_nbytes):
            self._read_next()

    def beside(self, bytes_per_second: float, work: Callable[[], _T]) -> tuple[_T, float]:
        """What `work` returns while loads are running, and how many bytes per second they came to."""
        if bytes_per_second == 0:
            return work(), 0.0
        ending = threading.Event()
        done_nbytes = [0] * THREADS
        failures: list[OSError] = []
        turns = itertools.count()
        began = perf_counter()

        def read(thread: int) -> None:
            try:
                while True:
                    turn = next(turns)
                    due = began + turn * self._read_nbytes / bytes_per_second
                    if ending.wait(max(0.0, due - perf_counter())) and turn:  # one read there always is
                        return
                    self._read_next()
                    done_nbytes[thread] += self._read_nbytes
            except OSError as error:
                failures.append(error)

        workers = [threading.Thread(target=read, args=(i,), name=f"penstock-load-{i}") for i in range(THREADS)]
        for worker in workers:
            worker.start()
        try:
            result = work()
        finally:
            ending.set()
            for worker in workers:
                worker.join()
        if failures:
            raise failures[0]
        return result, sum(done_nbytes) / (perf_counter() - began)

    def _read_next(self) -> None:
        number, nbytes, probe = next(self._numbers), self._read_nbytes, self._probe
        offset = number % (probe.nbytes // nbytes) * nbytes
        place = number % (len(self._memory) // nbytes) * nbytes
        with self._memory[place : place + nbytes] as target:
            done = os.preadv(probe.descriptor, [target], offset)
        if done != nbytes:
            raise OSError(errno.EIO, f"{done} of {nbytes} bytes at {offset}: it became shorter")
        if not probe.direct:
            os.posix_fadvise(probe.descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)
