"""What a file in the Trace Event Format has to be, checked without the code that writes it."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

_MIB = 2**20


def spans_of(trace: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The complete events of each thread, by the thread's name.

    Fails unless every event has what its phase asks for; the spans of a thread come in order and nest; no counter goes
    below zero; and the arena's never exceeds the arena.
    """
    names: dict[tuple[int, int], str] = {}
    threads: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    counters: dict[str, list[tuple[float, dict[str, float]]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        assert event["pid"] == 1
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            if event["name"] == "thread_name":
                names[event["pid"], event["tid"]] = event["args"]["name"]
        elif event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] > 0
            threads[event["pid"], event["tid"]].append(event)
        else:
            assert event["ph"] == "C"
            counters[event["name"]].append((event["ts"], event["args"]))
    assert len(set(names.values())) == len(names)
    assert set(counters) <= {"arena (MiB)", "memory (MiB)"}
    for name, samples in counters.items():
        _check_counter(samples, trace["otherData"]["arena_nbytes"] if name == "arena (MiB)" else math.inf)
    for spans in threads.values():
        _check_nesting(spans)
    return {name: threads[key] for key, name in names.items()}


def _check_counter(samples: list[tuple[float, dict[str, float]]], limit_nbytes: float) -> None:
    assert [at for at, _ in samples] == sorted(at for at, _ in samples)
    for _, sizes in samples:
        assert all(size >= 0 for size in sizes.values())
        assert sum(sizes.values()) * _MIB <= limit_nbytes


def _check_nesting(spans: list[dict[str, Any]]) -> None:
    open_until: list[int] = []
    before = 0
    for span in spans:
        begin = round(span["ts"] * 1000)
        end = begin + round(span["dur"] * 1000)
        assert begin >= before
        before = begin
        while open_until and open_until[-1] <= begin:
            open_until.pop()
        assert not open_until or end <= open_until[-1], f"{span['name']} outlasts what it began in"
        open_until.append(end)
