"""Load capacity: measured beside real loads, learnt by a regression, kept, and told to the plans that ask for it."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import penstock
from penstock import capacity, slowdown, workloads
from penstock.capacity import LoadCapacity, capacity_for, measure_capacity
from penstock.errors import PenstockError, StorageError
from penstock.planning import Plan, Problem
from penstock.planning.kinds import SLOWDOWNS
from penstock.planning.strategies import registry
from penstock.planning.strategies.optimal import Optimal
from penstock.slowdown import LOAD_SHARES, Effort, Sample, measure_slowdowns

from .measuring import few_operators, measure_little
from .streaming import WIDTH, counted_memory

__all__ = ["counted_memory"]

MIB = 2**20
LAW = (0.02, 0.05, 0.1, 0.01, 0.004)  # of the coefficients of `LoadCapacity`


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to measure, quickly and whatever else runs, with an empty cache folder."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("penstock.machine._QUICK_SECONDS", 0.001)
    monkeypatch.setattr("penstock.machine._QUICK_PROBE_NBYTES", 8 * MIB)
    measure_little(monkeypatch)
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def lawful_samples(noise: float = 0.01) -> list[Sample]:
    """What operators would be measured to do if slowdowns followed `LAW` exactly."""
    samples = []
    cases = itertools.product(SLOWDOWNS, (1e-4, 3e-4, 1e-3), (0, MIB), (0.0, 0.5e9, 1e9, 2e9))
    for kind, seconds, weight_nbytes, rate in cases:
        features = [kind == one for one in SLOWDOWNS] + [math.log10(seconds / 1e-3), weight_nbytes / seconds / 1e9]
        slowdown = rate / 1e9 * sum(c * f for c, f in zip(LAW, features, strict=True))
        name = f"{kind} {seconds} {weight_nbytes}"
        samples.append(Sample(kind, name, seconds, weight_nbytes, MIB, 1000, rate, slowdown if rate else noise))
    return samples


def test_every_operator_is_measured_beside_loads_of_every_rate_and_without(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = measure_capacity(folder, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 6) for done in range(1, 7)]
    names = [operator.name for operator in few_operators()]
    assert [sample.operator for sample in found.samples] == [name for name in names for _ in LOAD_SHARES]
    for number, sample in enumerate(found.samples):
        assert (sample.load_bytes_per_second == 0) == (number % len(LOAD_SHARES) == 0)
        assert sample.seconds > 0
    assert found.bytes_per_second > 0
    assert list(folder.iterdir()) == []


def test_what_was_measured_is_kept_for_the_strategy_that_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert capacity_for("flashmem", folder) is None
    found = measure_capacity(folder)
    assert capacity_for("optimal", folder) is None
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert capacity_for("flashmem", folder) == found


@pytest.mark.parametrize(
    "damage",
    [
        b"not json",
        b"[]",
        {"version": 0},
        {"machine": "another"},
        {"threads": 99},
        {"samples": []},
        {"samples": 7},
        {"samples": [{"kind": "reusable"}]},
        {"coefficients": [0.1]},
        {"coefficients": [0.1, 0.1, 0.1, 0.1, "much"]},
        {"coefficients": [0.1, 0.1, 0.1, 0.1, float("nan")]},
        {"median_error": None},
        {"p95_error": -1},
        ("kind", "fast"),
        ("operator", 1),
        ("seconds", 0),
        ("seconds", True),
        ("weight_nbytes", -1),
        ("load_bytes_per_second", 10**400),
        ("slowdown", -2),
        ("slowdown", float("inf")),
        ("surplus", 1),
    ],
)
def test_what_cannot_be_true_or_is_anothers_does_not_count(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | dict[str, Any] | tuple[str, Any]
) -> None:
    monkeypatch.setattr(capacity, "measure_slowdowns", lambda *_, **__: lawful_samples())
    measure_capacity(folder)
    assert capacity_for("flashmem", folder) is not None
    (file,) = (tmp_path / "cache" / "machine").glob("capacity-*")
    fields = json.loads(file.read_text())
    if isinstance(damage, bytes):
        file.write_bytes(damage)
    elif isinstance(damage, dict):
        file.write_text(json.dumps(fields | damage))
    else:
        fields["samples"][0][damage[0]] = damage[1]
        file.write_text(json.dumps(fields))
    assert capacity_for("flashmem", folder) is None


def test_a_failed_read_is_a_storage_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    penstock.machine.storage_profile(folder)
    monkeypatch.setattr(slowdown.os, "preadv", lambda *_: 512)
    with pytest.raises(StorageError, match="measuring load capacity failed"):
        measure_capacity(folder)


def test_a_read_that_fails_beside_an_operator_ends_the_measurement(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.preadv, itertools.count(-8)  # the memory is touched by two reads, and a probe takes some

    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return 512 if len(buffers[0]) == 4 * MIB and next(left) > 0 else real(descriptor, buffers, offset)

    penstock.machine.storage_profile(folder)
    monkeypatch.setattr(slowdown.os, "preadv", fail)
    with pytest.raises(StorageError, match="became shorter"):
        measure_capacity(folder)


def test_without_scikit_learn_the_remedy_is_named_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr(capacity, "measure_slowdowns", None)
    with pytest.raises(PenstockError, match=r"pip install 'penstock\[capacity\]'"):
        measure_capacity(folder)


def test_too_few_samples_of_a_class_are_refused() -> None:
    samples = [sample for sample in lawful_samples() if sample.kind != "elemental"]
    with pytest.raises(PenstockError, match="0 elemental operators"):
        LoadCapacity.of(samples)


def test_the_regression_learns_what_loads_cost_and_tells_how_well() -> None:
    found = LoadCapacity.of(lawful_samples())
    assert found.coefficients == pytest.approx(LAW, abs=1e-3)
    assert found.median_error < 1e-3
    wrong = [
        replace(one, slowdown=one.slowdown + 0.3 * (number % 7 == 0)) for number, one in enumerate(lawful_samples())
    ]
    assert LoadCapacity.of(wrong).coefficients == pytest.approx(LAW, abs=0.02)
    assert LoadCapacity.of(wrong).p95_error > 0.2


def test_loads_fit_as_far_as_the_class_may_slow_down() -> None:
    found = LoadCapacity.of(lawful_samples(noise=0.01))
    assert found.noise == pytest.approx(0.0148, abs=1e-4)
    assert found.bytes_per_second == 2e9
    # No slowdown means none beyond noise: 0.0148 at 0.02 for each GB/s.
    assert found.fitting_bytes_per_second("hierarchical", 1e-3, 0) == pytest.approx(0.741e9, rel=0.05)
    assert found.most_nbytes("hierarchical", 1e-3, 0) == pytest.approx(0.741e6, rel=0.05)
    assert found.most_nbytes("reusable", 1e-3, 0) == pytest.approx(2e6 * 1.2, rel=1e-6)
    assert found.most_nbytes("elemental", 1e-3, 0) == pytest.approx(2e6 * 4, rel=1e-6)
    dear = replace(found, coefficients=(0.02, 0.5, 0.1, 0.0, 0.0))
    assert dear.most_nbytes("reusable", 1e-3, 0) == pytest.approx(0.4e6 * 1.2, rel=1e-6)
    free = replace(found, coefficients=(-0.02, 0.5, 0.1, 0.0, 0.0))
    assert free.most_nbytes("hierarchical", 1e-3, 0) == 2_000_000


def test_calls_beyond_what_was_measured_count_as_the_nearest_that_was() -> None:
    found = LoadCapacity.of(lawful_samples())
    assert found.most_nbytes("reusable", 0.0, 0) == 0
    rates = [found.fitting_bytes_per_second("hierarchical", seconds, 10**12) for seconds in (1e-3, 1.0, 1e5)]
    assert rates[0] == rates[1] == rates[2]


@pytest.mark.parametrize(("disturbed", "samples"), [(0, 5), (19, 5), (21, 0)])
def test_calls_that_lost_a_core_to_another_program_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disturbed: int, samples: int
) -> None:
    """Of thirty calls in each window, some take a time slice longer; a sample takes ten that do not."""

    def times(seconds: float) -> list[float]:
        return [seconds] * (30 - disturbed) + [seconds + 0.008] * disturbed

    monkeypatch.setattr(slowdown, "_MEMORY_NBYTES", MIB)
    monkeypatch.setattr(slowdown._Loads, "touch", lambda _: None)
    monkeypatch.setattr(slowdown._Loads, "beside", lambda *_: (times(0.0011), 1e9))
    monkeypatch.setattr(slowdown, "_time_calls", lambda *_: times(0.001))
    probe = penstock.probe.Probe(-1, MIB, 4096, True)
    effort = Effort(seconds=0, most_seconds=0, calls=30)
    found = measure_slowdowns(probe, [workloads._add(4, 8)], 1e9, effort)
    assert [sample.slowdown for sample in found] == pytest.approx([0.1] * samples)


def test_operators_do_what_they_are_said_to_do() -> None:
    found = workloads.operators()
    assert len({operator.name for operator in found}) == len(found)
    for kind in SLOWDOWNS:
        assert len([operator for operator in found if operator.kind == kind]) >= 8
    for operator in found:
        if operator.kind == "reusable" and operator.weight_nbytes <= 4 * MIB:
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                operator.build()()
            assert counter.get_total_flops() == operator.flops


@dataclass(frozen=True)
class Recording(Optimal):
    """A strategy that remembers its problems, under the name of one that asks for load capacity."""

    problems: list[Problem] = field(default_factory=list)

    name = "flashmem"

    def plan(self, problem: Problem) -> Plan:
        self.problems.append(problem)
        return super().plan(problem)


@pytest.mark.usefixtures("counted_memory")
@pytest.mark.parametrize("is_measured", [False, True])
def test_plans_by_flashmem_know_what_each_call_has_room_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_measured: bool
) -> None:
    flashmem, other = Recording(), Recording()
    monkeypatch.setitem(registry._STRATEGIES, "flashmem", flashmem)
    monkeypatch.setitem(registry._STRATEGIES, "other", other)
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)).eval()
    save_file(module.state_dict(), folder / "model.safetensors")
    measured = measure_capacity(folder) if is_measured else None
    for strategy in ("flashmem", "other"):
        arguments: dict[str, Any] = {"budget": "4MiB", "example": torch.randn(3, WIDTH), "strategy": strategy}
        penstock.plan(module, folder, **arguments)
        penstock.stream(module, folder, **arguments)
        penstock.restore(module)
    assert [call.kind for call in flashmem.problems[0].calls] == ["reusable", "hierarchical", "reusable"]
    for problem in flashmem.problems:
        for call in problem.calls:
            weight_nbytes = sum(problem.weights[index].nbytes for index in call.reads)
            most = measured.most_nbytes(call.kind, call.seconds, weight_nbytes) if measured is not None else None
            assert call.load_nbytes == most
    assert {call.load_nbytes for problem in other.problems for call in problem.calls} == {None}
