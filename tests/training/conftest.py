"""What tests of training share."""

from __future__ import annotations

import sys

import pytest

from penstock.planning.swap_problem import Link


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What is measured differs from run to run, and what is planned then, too: memory beside storages, and links.

    Measured links take longer than these loops. A module's own link is its `LINK`.
    """
    monkeypatch.setattr(sys.modules["penstock.training.meter"], "read_memory", lambda: None)
    link = getattr(request.module, "LINK", Link(1e-4, 1e9))
    monkeypatch.setattr(sys.modules["penstock.training.planner"], "measure_links", lambda folder: (link, link))
