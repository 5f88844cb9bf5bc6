"""What tests of training share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from penstock.planning.swap_problem import Link


def _shortly(search: Callable[..., Any], most: float, /, *arguments: Any, **more: Any) -> Any:
    return search(*arguments, **{**more, "seconds": most})


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What is measured differs from run to run, and what is planned then, too: memory beside storages, and links.

    Measured links take longer than these loops. A module's own link is its `LINK`. Plans are searched for shortly.
    """
    monkeypatch.setattr(sys.modules["penstock.training.meter"], "read_memory", lambda: None)
    for module, name, seconds in (("placing", "place", 0.05), ("planner", "plan_swaps", 0.3)):
        found = sys.modules[f"penstock.training.{module}"]
        search = partial(_shortly, getattr(found, name), seconds)
        monkeypatch.setattr(found, name, search)
    link = getattr(request.module, "LINK", Link(1e-4, 1e9))
    monkeypatch.setattr(sys.modules["penstock.training.planner"], "measure_links", lambda folder: (link, link))
