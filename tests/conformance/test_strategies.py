from __future__ import annotations

from penstock.planning.strategies import names

from .strategy import StrategyConformance


class TestOptimal(StrategyConformance):
    @property
    def name(self) -> str:
        return "optimal"


class TestAuto(StrategyConformance):
    @property
    def name(self) -> str:
        return "auto"


class TestSequential(StrategyConformance):
    streams_whatever_fits = True

    @property
    def name(self) -> str:
        return "sequential"


class TestSynchronous(StrategyConformance):
    streams_whatever_fits = True

    @property
    def name(self) -> str:
        return "synchronous"

    @property
    def tight_nbytes(self) -> int:
        return 4 * 5120


class TestAsynchronous(StrategyConformance):
    streams_whatever_fits = True

    @property
    def name(self) -> str:
        return "asynchronous"


class TestTwoStage(StrategyConformance):
    streams_whatever_fits = True

    @property
    def name(self) -> str:
        return "two-stage"


class TestPreload(StrategyConformance):
    @property
    def name(self) -> str:
        return "preload"

    @property
    def tight_nbytes(self) -> None:
        return None


class TestSwapNet(StrategyConformance):
    @property
    def name(self) -> str:
        return "swapnet"


class TestFlashMem(StrategyConformance):
    needs = "ortools"

    @property
    def name(self) -> str:
        return "flashmem"


def test_every_strategy_is_held_to_this() -> None:
    held = {case().name for case in StrategyConformance.__subclasses__()}
    assert held == {*names(), "auto"}
