from __future__ import annotations

from .strategy import StrategyConformance


class TestBalanced(StrategyConformance):
    @property
    def name(self) -> str:
        return "balanced"


class TestAuto(StrategyConformance):
    @property
    def name(self) -> str:
        return "auto"
