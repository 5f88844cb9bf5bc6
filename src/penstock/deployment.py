"""The plan in force with everything that follows it: arena, threads, hooks; replaced as a whole by the next plan."""

from __future__ import annotations

import contextlib
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from penstock.checkpoint import Checkpoint
from penstock.errors import StreamStateError
from penstock.planning import Plan, Problem
from penstock.runtime.attachment import Attachment
from penstock.runtime.binding import BoundWeight, FileViews
from penstock.runtime.devices.base import Device
from penstock.runtime.events import EventLog
from penstock.runtime.executor import Executor
from penstock.runtime.installation import Installation
from penstock.runtime.pipeline import Pipeline
from penstock.runtime.pipeline_stats import PipelineStats
from penstock.runtime.schedule import NO_SCHEDULE
from penstock.runtime.storage import FileStorage


class Deployment:
    """The executing side of one streamed module.

    Attributes:
        installation: the plan in force with its memory, if there is one.
        owned_folder: what was written for this stream and goes with it, if anything was.
        has_passed: whether a pass has ended with this plan.
        realigned: weights that are moved to aligned addresses by the plan in force.
        peak_nbytes: most bytes that any plan so far predicted.
    """

    def __init__(
        self, module: nn.Module, checkpoint: Checkpoint, weights: list[BoundWeight], owned_folder: Path | None
    ) -> None:
        self._module = weakref.ref(module)
        self._modules = {name: weakref.ref(child) for name, child in module.named_modules()}
        self._checkpoint, self._weights, self.owned_folder = checkpoint, weights, owned_folder
        self.storage = FileStorage(checkpoint.files)
        self.executor = Executor(weights, FileViews(checkpoint))
        self.attachment = Attachment(module)
        self.installation: Installation | None = None
        self._is_settled = self.has_passed = False
        self.realigned: frozenset[int] = frozenset()
        self._earlier = PipelineStats()  # of installations that are gone
        self.peak_nbytes = 0
        self._process = os.getpid()
        self._closer = _Closer(self.storage, owned_folder)
        self._finalizer = weakref.finalize(module, self._closer)

    @property
    def module(self) -> nn.Module:
        """The streamed module."""
        module = self._module()
        if module is None:
            raise StreamStateError("the streamed module is gone")
        return module

    @property
    def plan(self) -> Plan:
        """The plan in force.

        Raises:
            StreamStateError: there is none.
        """
        return self.in_force().plan

    def in_force(self) -> Installation:
        """The plan in force with its problem and its memory.

        Raises:
            StreamStateError: there is none.
        """
        if self.installation is None:
            raise StreamStateError("nothing is planned yet: call the module once, or stream it with an `example`")
        return self.installation

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that streams, not a fork of it."""
        return os.getpid() == self._process

    def arena_nbytes(self) -> int:
        """How much of the arena is in memory."""
        return self.installation.arena_nbytes() if self.installation is not None else 0

    def install(self, problem: Problem, plan: Plan, device: Device, realigned: frozenset[int]) -> None:
        """Follow `plan` instead of the present one, all of it still to be loaded."""
        self.uninstall()
        try:
            with torch.inference_mode(False):  # a plan made inside a pass outlives the mode that the pass runs in
                self.installation = Installation(
                    plan,
                    problem,
                    weights=self._weights,
                    modules={name: module for name, ref in self._modules.items() if (module := ref()) is not None},
                    device=device,
                    open_storage=lambda: FileStorage(self._checkpoint.files, direct=self.storage.direct),
                    realign=realigned,
                )
                self._closer.pipeline = self.installation.pipeline
                if self.executor.events is not None:
                    self.installation.record(self.executor.events)
                self.realigned, self._is_settled, self.has_passed = realigned, False, False
                self.executor.install(self.installation.cold, self.installation.pipeline)
                self.attachment.follow(self.executor, self.installation.cold)
        except BaseException:  # half of it would count as in force
            self.uninstall()
            raise
        self.peak_nbytes = max(self.peak_nbytes, plan.prediction.peak_nbytes)

    def uninstall(self) -> None:
        """Give the present plan's memory and threads back; what an interrupt cuts off here is done the next time."""
        try:
            self.attachment.follow(None, NO_SCHEDULE)
            self.executor.suspend()
        finally:
            gone, self.installation = self.installation, None
            if gone is not None:
                self._earlier += gone.pipeline.stats
                _surely(gone.close)
            elif self._closer.pipeline is not None:
                self._closer.pipeline.close()
            self._closer.pipeline = None  # or its arena would outlive it
            self.executor.uninstall()

    def record(self, events: EventLog | None) -> None:
        """Note from now on in `events` what this and later installations do; if None, nowhere. While no pass runs."""
        self.executor.events = events
        if self.installation is not None:
            self.installation.record(events)

    def layer_names(self) -> dict[int, str]:
        """The path of each module, by `id`."""
        return {id(module): name for name, ref in self._modules.items() if (module := ref()) is not None}

    def settle(self) -> None:
        """After a pass: let resident layers run free once they are loaded."""
        installation = self.installation
        self.has_passed = installation is not None
        if installation is not None and not self._is_settled and not self.executor.is_cold:
            self.executor.settle(installation.warm)
            self.attachment.follow(self.executor, installation.warm)
            self._is_settled = True

    @contextlib.contextmanager
    def unfollowed(self) -> Iterator[None]:
        """The module without what streaming hangs on its layers."""
        try:
            self.attachment.follow(None, NO_SCHEDULE)
            yield
        finally:
            if self.installation is not None:
                schedule = self.installation.warm if self._is_settled else self.installation.cold
                self.attachment.follow(self.executor, schedule)

    def stats(self) -> PipelineStats:
        """What all installations did so far."""
        total = PipelineStats()
        total += self._earlier
        if self.installation is not None:
            total += self.installation.pipeline.stats
        return total

    def stall_seconds(self) -> float:
        """For which layers waited so far."""
        return self.stats().stall_seconds

    def close(self, *, remove_files: bool) -> None:
        """Undo everything but the weights: no thread, descriptor, hook or file is left. Weights stay unreadable."""
        self.uninstall()
        self.attachment.detach()
        self._finalizer.detach()
        self.storage.close()
        if remove_files and self.owned_folder is not None and self.is_own_process:
            shutil.rmtree(self.owned_folder, ignore_errors=True)


def _surely(close: Callable[[], None]) -> None:
    """Call it again where an interrupt cut it off: readers that are half told to end would stay."""
    try:
        close()
    except BaseException:
        close()
        raise


class _Closer:
    """Ends what would outlive a module that is dropped without `restore`."""

    def __init__(self, storage: FileStorage, folder: Path | None) -> None:
        self._storage, self._folder = storage, folder
        self.pipeline: Pipeline | None = None  # not the schedule, which knows modules and would keep them
        self._process = os.getpid()

    def __call__(self) -> None:
        if os.getpid() != self._process:
            return  # a forked child leaves its parent's files alone
        if self.pipeline is not None:
            self.pipeline.close()
        self._storage.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
