"""An iteration that is known: planned for, followed, and planned for anew."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch

from penstock.footprint import return_free_memory
from penstock.planning.swap_plan import SwapPlan
from penstock.training.correcting import Corrector
from penstock.training.entry import Kept
from penstock.training.meter import Meter
from penstock.training.mover import Mover
from penstock.training.planner import Planner
from penstock.training.pool import Pool
from penstock.training.swap_stats import SwapStats
from penstock.training.swapfile import SwapFile
from penstock.training.swapper import Swapper
from penstock.training.tape import Event

logger = logging.getLogger("penstock")


class Following:
    """Plans for an iteration, one after another, and what moves storages by them.

    Args:
        planner: of the iteration.
        scores: how it is to choose what leaves.
        budget_nbytes: which iterations are to keep.
        folder: that storages leave to; the system's temporary folder if None.
        stats: to be kept.
        meter: of what iterations take.
        pool: if it is preloaded.

    Attributes:
        plan: what is followed; None before `begin`, and where there is none.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        scores: str,
        budget_nbytes: int,
        folder: Path | None,
        stats: SwapStats,
        meter: Meter,
        pool: Pool | None,
    ) -> None:
        self.planner = planner
        self.plan: SwapPlan | None = None
        self._scores, self._folder, self._stats, self._meter, self._pool = scores, folder, stats, meter, pool
        self._corrector = Corrector(budget_nbytes, meter)
        self._swapper: Swapper | None = None
        self._mover: Mover | None = None

    def begin(self) -> None:
        """Make a plan, and follow it from the next iteration on.

        Raises:
            BudgetInfeasibleError: no plan is within the budget; says which budget has one.
            StorageError: the disk has no room for what leaves.
        """
        plan = self.planner.plan(self._scores)
        swapper, self._swapper = self._swapper, None
        if swapper is not None:
            swapper.bring_back()
        if self._mover is None:
            self._mover = Mover(SwapFile(self._folder))
        self.plan = plan
        self._swapper = self.planner.follow(plan, self._mover, self._stats)
        self._give_back()

    def _give_back(self) -> None:
        """What is free is the system's."""
        return_free_memory()
        if self._pool is not None:
            self._pool.retire()

    def end(self) -> None:
        """Have what graphs and optimizers still need in memory, and move nothing any more.

        Raises:
            StorageError: something could not be read, and is lost.
        """
        swapper, self._swapper = self._swapper, None
        try:
            if swapper is not None:
                swapper.bring_back()
        finally:
            try:
                self.planner.movables.bring()
                self.planner.movables.release()
            finally:
                if self._mover is not None:
                    self._mover.close()
                    self._mover = None

    # -- what happens --

    def saved(self, tensor: torch.Tensor) -> Kept:
        """Autograd saves a tensor: what it is to keep in its place."""
        if self._swapper is None:
            return Kept(tensor)
        self._begin_iteration(self._swapper)
        return self._swapper.saved(tensor)

    def taken(self, kept: Kept) -> torch.Tensor:
        """Autograd takes back what it was to keep."""
        return self._swapper.taken(kept) if self._swapper is not None else kept.take()[0]

    def event(self, event: Event) -> None:
        """Anything else."""
        if self._swapper is not None:
            self._begin_iteration(self._swapper)
            self._swapper.event(event)

    def _begin_iteration(self, swapper: Swapper) -> None:
        """Before the first event of an iteration: what happened since the last one was not the iteration's."""
        if swapper.is_between and not self._corrector.is_done:
            self._meter.reset()

    def steps(self, parameters: Iterable[torch.Tensor]) -> None:
        """These, and their state, are stepped next.

        Raises:
            StorageError: something could not be read.
        """
        if self._swapper is not None:
            self._swapper.have(parameters)
        else:
            self.planner.movables.bring(parameters)

    def bring(self, weights: Iterable[torch.Tensor] | None = None, *, at_once: bool = False) -> None:
        """Somebody is about to read these, or everything, state too, until the next iteration begins.

        If he is to compute gradients with them at once, they do not leave but by plan.

        Raises:
            StorageError: something could not be read.
        """
        movables = self.planner.movables
        seconds = movables.bring() if weights is None else movables.bring_weights(weights)
        if seconds > 0 and self._swapper is not None and not at_once:
            self._swapper.has_asked = True

    def forget_states(self) -> None:
        """The optimizers have other state now, which stays."""
        forgotten = self.planner.movables.forget_states()
        if self._swapper is not None:
            self.planner.exclude(forgotten)
            self._swapper.forget_states()
            logger.warning("the optimizer's state was loaded anew: it stays in memory from now on, beyond the budget")

    def stepped(self) -> None:
        """After a step: if an iteration has ended, plan anew where what was measured of it asks for that.

        Raises:
            BudgetInfeasibleError: as for `begin`.
            StorageError: likewise.
        """
        swapper, mover, plan = self._swapper, self._mover, self.plan
        if swapper is None or mover is None or plan is None or self._corrector.is_done or not swapper.is_between:
            return
        self._give_back()
        if self._corrector.looks(self.planner, plan, swapper, mover):
            self.begin()
