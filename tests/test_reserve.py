"""What a plan keeps free for a process that has measured nothing yet."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import penstock
from penstock.footprint import Footprint

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
