"""What a plan keeps free for what it cannot count: measured or not, and where its arena ebbs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import penstock
from penstock import planmaking
from penstock.budget import Budget
from penstock.errors import BudgetInfeasibleError
from penstock.footprint import Footprint
from penstock.planmaking import Need, Planner
from penstock.planning import PlanOptions
from penstock.provision import Provision
from penstock.runtime.devices.cpu import CpuDevice
from penstock.signature import Signature
from penstock.terms import Terms
from penstock.trace import Trace, TracedCall

MIB = 1 << 20
BUDGET = 96 * MIB


def bookkeeping_nbytes() -> int:
    module = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    penstock.stream(module, budget=BUDGET, example=torch.zeros(4, 512))
    try:
        return penstock.inspect(module).plan.reserve.bookkeeping_nbytes
    finally:
        penstock.restore(module)


def test_what_the_process_holds_already_is_kept_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Footprint, "growth_nbytes", lambda _: 0)
    before = bookkeeping_nbytes()
    monkeypatch.setattr(Footprint, "growth_nbytes", lambda _: 9 * MIB + 1)
    assert bookkeeping_nbytes() == before + 9 * MIB + 1


def test_each_layer_is_preceded_by_a_look_at_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(Footprint, "guard", lambda _, most_nbytes: looks.append(most_nbytes()))
    module = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    penstock.stream(module, budget=BUDGET, example=torch.zeros(4, 512))
    with torch.inference_mode():
        module(torch.zeros(4, 512))
    penstock.restore(module)
    assert len(looks) == 8
    assert all(BUDGET * 0.9 < most < BUDGET for most in looks)


def test_only_first_passes_map_every_tensor_and_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []

    @contextlib.contextmanager
    def noted() -> Iterator[None]:
        passes.append("first")
        yield

    learn = Provision.learn
    monkeypatch.setattr(sys.modules["penstock.stream"], "without_holes", noted)
    monkeypatch.setattr(Provision, "learn", lambda *args: (passes.append("timed"), learn(*args))[1])
    module = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    penstock.stream(module, budget=BUDGET, example=torch.zeros(4, 512))
    with torch.inference_mode():
        module(torch.zeros(4, 512))
        assert passes == ["first"]
        for _ in range(6):
            module(torch.zeros(4, 512))
        assert passes[:4] == ["first", "timed", "timed", "timed"]
        assert passes[4:] in ([], ["first"])  # planned anew with what was measured
        passes.clear()
        module(torch.zeros(2, 512))  # the plan has room for it
        assert passes == []
        penstock.inspect(module).budget = BUDGET // 2
        module(torch.zeros(4, 512))
        assert passes[0] == "first"
    penstock.restore(module)


CALLS = (TracedCall("a", (0,), (), 1.0, 0), TracedCall("b", (0,), (), 1.0, 1))
TRACE = Trace(("w",), CALLS, MIB, frozenset(), {}, True)
TERMS = Terms(Budget(BUDGET), CpuDevice(), "optimal", PlanOptions())


def planner(monkeypatch: pytest.MonkeyPatch, seconds: dict[tuple[int, bool], float | None]) -> Planner:
    """One whose plans take so long, by overhead and by whether they may ebb; None where there is no plan."""

    def problem(trace: Trace, *_: object, overhead_nbytes: int, **__: object) -> tuple[int, bool]:
        return overhead_nbytes, any(call.live_nbytes < trace.activations_nbytes for call in trace.calls)

    def plan(found: tuple[int, bool], *_: object) -> SimpleNamespace:
        overhead_nbytes, may_ebb = found
        if (warm_seconds := seconds[found]) is None:
            raise BudgetInfeasibleError("no", needed_nbytes=overhead_nbytes)
        prediction = SimpleNamespace(warm_seconds=warm_seconds)
        return SimpleNamespace(ebbs=[0] * may_ebb, prediction=prediction, budget_nbytes=overhead_nbytes, of=found)

    monkeypatch.setattr(planmaking, "make_problem", problem)
    monkeypatch.setattr(planmaking, "kept_plan", plan)
    monkeypatch.setattr(planmaking, "storage_profile", lambda _: None)
    return Planner((), SimpleNamespace(files=[SimpleNamespace(path=None)]), "optimal")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ebbing", "seconds", "chosen"),
    [
        (30, {(40, True): 1.0}, (40, True)),  # it was measured to ebb as it should
        (50, {(40, True): 1.0, (50, True): 1.1, (40, False): 1.2}, (50, True)),
        (50, {(40, True): 1.0, (50, True): 1.3, (40, False): 1.2}, (40, False)),
        (50, {(40, True): 1.0, (50, True): None, (40, False): 1.2}, (40, False)),
        (50, {(40, True): 1.0, (50, True): 1.3, (40, False): None}, (50, True)),
        (0, {(40, True): 1.0, (45, True): 1.1, (40, False): 1.2}, (45, True)),  # half of the activations stay
    ],
)
def test_a_plan_that_ebbs_has_room_for_what_activations_leave(
    monkeypatch: pytest.MonkeyPatch,
    ebbing: int,
    seconds: dict[tuple[int, bool], float | None],
    chosen: tuple[int, bool],
) -> None:
    made = planner(monkeypatch, seconds)
    _, plan = made.plan(TRACE, TERMS, Need(10, 40, ebbing, 0, 0), moved=())
    assert plan.of == chosen  # type: ignore[attr-defined]


def test_without_room_for_either_the_budget_is_refused_with_the_least_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = planner(monkeypatch, {(40, True): 1.0, (50, True): None, (40, False): None})
    with pytest.raises(BudgetInfeasibleError) as caught:
        made.plan(TRACE, TERMS, Need(10, 40, 50, 0, 0), moved=())
    assert caught.value.needed_nbytes == 40


def test_a_guess_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planner(monkeypatch, {(40, True): 1.0, (45, True): None, (40, False): None})
    _, plan = made.plan(TRACE, TERMS, Need(10, 40, 0, 0, 0), moved=())
    assert plan.of == (40, True)  # type: ignore[attr-defined]


def test_where_memory_is_to_be_saved_the_smaller_plan_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planner(monkeypatch, {(40, True): 1.0, (50, True): 1.1, (40, False): 1.2})
    terms = replace(TERMS, options=PlanOptions(least_memory=True))
    _, plan = made.plan(TRACE, terms, Need(10, 40, 50, 0, 0), moved=())
    assert plan.of == (40, False)  # type: ignore[attr-defined]


def test_passes_that_ebb_are_measured_apart() -> None:
    module = nn.Sequential(nn.Linear(512, 512))
    penstock.stream(module, budget=BUDGET, example=torch.zeros(4, 512))
    admission = penstock.inspect(module)._provision.admission
    first, second = (Signature.of((torch.zeros(rows, 512),), {}) for rows in (4, 2))
    admission.add(second, replace(admission.trace(first), overhead_nbytes=0))  # type: ignore[type-var]
    admission.note_overhead(first, 3 * MIB, is_ebbing=True)  # the first that is measured counts for all
    assert (admission.overhead_nbytes, admission.ebbing_nbytes) == (3 * MIB, 3 * MIB)
    admission.note_overhead(second, 5 * MIB, is_ebbing=True)
    admission.note_overhead(first, 4 * MIB, is_ebbing=True)
    penstock.restore(module)
    assert (admission.overhead_nbytes, admission.ebbing_nbytes) == (3 * MIB, 5 * MIB)


def test_each_kind_of_plan_is_measured_once_in_a_process() -> None:
    module = nn.Sequential(nn.Linear(512, 512))
    penstock.stream(module, budget=BUDGET, example=torch.zeros(4, 512))
    admission = penstock.inspect(module)._provision.admission
    signature = Signature.of((torch.zeros(8, 512),), {})
    assert not admission.take_to_measure(signature, is_ebbing=False)  # nothing is known of it
    admission.add(signature, TRACE)
    asked = [admission.take_to_measure(signature, is_ebbing=is_ebbing) for is_ebbing in (False, False, True, True)]
    penstock.restore(module)
    assert asked == [True, False, True, False]
