"""Lends parts of the arena to activations and takes them back, as calls begin.

Which ebbs are out is decided by the call that begins, whatever came before it, so an order that no plan knows is
followed as well as a known one. Only a place that nothing holds is lent; where a layer around the call holds it, the
pass goes on without.
"""

from __future__ import annotations

from penstock.runtime.pipeline import Pipeline


class Tide:
    """The ebbs of one pipeline, by their number among its loads. Only the thread whose pass it is may turn it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.out: tuple[int, ...] = ()

    def turn(self, ebbs: tuple[int, ...]) -> None:
        """Have out exactly `ebbs`: others end, so that loads may have their places, and these begin."""
        before, self.out = self.out, tuple(ebb for ebb in self.out if ebb in ebbs)
        for ebb in before:
            if ebb not in ebbs:
                self._pipeline.release(ebb)
        for ebb in ebbs:
            if ebb not in before and self._pipeline.lend(ebb):
                self.out = (*self.out, ebb)

    def forget(self) -> None:
        """After an interrupt: nothing is out, and the pipeline's account is written anew by others."""
        self.out = ()
