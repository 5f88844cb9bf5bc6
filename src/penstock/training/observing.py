"""Iterations as they are before anything leaves: recorded until two in a row are alike, then timed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch

from penstock.training.calls import Calls
from penstock.training.iteration import last_iteration, tokens
from penstock.training.period import find_period
from penstock.training.pool import Pool
from penstock.training.tape import PARAMETERS, Event, Recorder
from penstock.training.timing import Timing

logger = logging.getLogger("penstock")

PATIENCE = 12
"""Steps of each optimizer that are recorded before it is said that nothing repeats."""


Known = Callable[[], Iterable[tuple[str, torch.Tensor]]]
"""Kinds and tensors."""


class Observer:
    """Sees events until an iteration is known.

    Args:
        optimizers: how many step.
        known: what the tensors of the model and its optimizers are for, at any moment.
        pool: which records, too, if it is preloaded.
        parameters: whether it matters when they are used, and when their gradients come to be.

    Attributes:
        found: the iteration, once it is known.
    """

    def __init__(self, optimizers: int, known: Known, pool: Pool | None, *, parameters: bool) -> None:
        self._patience, self._pool = PATIENCE * optimizers, pool
        self._recorder = Recorder()
        self._known, self._sees_parameters = known, parameters
        self._recording = ExitStack()
        self._recorder.know(known())
        self._timing: Timing | None = None
        self._steps = 0
        self.found: Timing | None = None

    @property
    def live_nbytes(self) -> int:
        """Of storages that live now."""
        return self._recorder.live_nbytes

    def begin(self) -> None:
        """See operations from now on."""
        for kind, parameter in self._known() if self._sees_parameters else ():
            if kind == PARAMETERS and parameter.requires_grad and parameter.is_leaf:
                handle = parameter.register_post_accumulate_grad_hook(self._recorder.accumulated)
                self._recording.callback(handle.remove)
        self._recording.enter_context(self._recorder)
        if self._sees_parameters:
            self._recording.enter_context(Calls(self._recorder.called, self._recorder.seen))

    def event(self, event: Event, storage: torch.UntypedStorage | None = None) -> None:
        """One more."""
        observer = self._timing if self._timing is not None else self._recorder
        observer.event(event, storage)

    def stepped(self) -> bool:
        """After a step: whether there is nothing more to see, because an iteration is known, or none ever will be."""
        self._steps += 1
        if self._timing is not None and self._timing.is_done:
            self.found = self._timing
        elif self._steps >= self._patience:
            logger.warning(
                "no two iterations in %d steps were alike, so nothing can be planned: training goes on unswapped, "
                "beyond its budget; pad or bucket the batches to a fixed size",
                self._steps,
            )
        elif self._timing is None:
            self._time_if_alike()
            return False
        else:
            return False
        self.end()
        return True

    def _time_if_alike(self) -> None:
        period = find_period(*tokens(self._recorder.events), is_marked=True)
        if period is not None:
            self._recorder.know(self._known())  # gradients and state that are new
            tape = self._recorder.tape()
            self.end()
            self._steps = 0
            self._timing = Timing(last_iteration(tape, period), self._pool)

    def end(self) -> None:
        """See operations no more. Safe to call twice."""
        self._recorder.forget()
        self._recording.close()
