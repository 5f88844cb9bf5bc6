"""How a module begins to be streamed, so that it is as before where it cannot be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from penstock.checkpoint import Checkpoint, WeightSource
from penstock.dryrun import dry_trace, prepare
from penstock.errors import UnsupportedModelError
from penstock.footprint import Footprint, retain_little, return_free_memory
from penstock.matching import match
from penstock.provision import Provision
from penstock.runtime.binding import BoundWeight
from penstock.runtime.collecting import collect_weights
from penstock.runtime.devices.base import Device
from penstock.runtime.reading import read_weight
from penstock.runtime.storage import FileStorage
from penstock.spill import spill
from penstock.stream import Stream
from penstock.terms import Terms
from penstock.trace import Trace
from penstock.workload import Workload, find_workload

StrPath = str | os.PathLike[str]
_BUFFER_READERS = 4
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Origin:
    """Where a module's weights come from.

    Attributes:
        sources: by name, the bytes of each weight and of each buffer that the checkpoint holds.
        folder: what was written for this stream and goes with it, if anything was.
        keeps_layout: whether the bytes of a weight are in the order that the module's own have in memory.
    """

    checkpoint: Checkpoint
    sources: Mapping[str, WeightSource]
    folder: Path | None = None
    keeps_layout: bool = False

    @classmethod
    def of(cls, module: nn.Module, path: StrPath) -> Origin:
        """The checkpoint at `path`, checked to be the module's."""
        checkpoint = Checkpoint.open(path)
        return cls(checkpoint, match(module, checkpoint))

    @classmethod
    def spilled(cls, module: nn.Module, folder: StrPath | None) -> Origin:
        """The module's present parameters, written below `folder`. Buffers stay where they are."""
        checkpoint, written = spill(module, folder)
        return cls(checkpoint, checkpoint.tensors, written, keeps_layout=True)

    @classmethod
    def present(cls, stream: Stream) -> Origin:
        """What `stream` reads. A forked child leaves the folder to its parent."""
        sources = {weight.name: weight.source for weight in stream.weights}
        folder = stream.owned_folder if stream.is_own_process else None
        return cls(stream.checkpoint, sources, folder, keeps_layout=True)

    def collect(self, module: nn.Module, device: Device) -> list[BoundWeight]:
        """The weights to stream.

        Raises:
            UnsupportedModelError: there are none.
        """
        weights = collect_weights(module, dict(self.sources), device.torch_device, keeps_layout=self.keeps_layout)
        if not weights:
            raise UnsupportedModelError(f"{type(module).__name__} has no weights to stream")
        return weights

    def remove_files(self) -> None:
        """Remove what was written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def start(
    module: nn.Module,
    origin: Origin,
    call: Call | None,
    terms: Terms,
    footprint: Footprint,
) -> None:
    """Stream `module`, which is not streamed; after an error it is not, and has its weights if it had them."""
    retain_little(terms.budget.nbytes)
    weights = origin.collect(module, terms.device)
    load_buffers(module, origin)
    provision = Provision(
        module,
        origin.checkpoint,
        weights,
        terms=terms,
        fixed_nbytes=_fixed_nbytes(module, weights),
        footprint=footprint,
        owned_folder=origin.folder,
    )
    handle = Stream(provision)
    was_resident = any(not weight.parameter.is_meta for weight in weights)
    handle.attach()
    return_free_memory()  # what the weights leave behind would count as growth
    try:
        handle.prepare(call)
    except BaseException:
        if was_resident:
            handle.make_resident()
        else:
            handle.close(remove_files=False)
        raise


def start_again(
    module: nn.Module,
    earlier: Stream,
    path: StrPath | None,
    call: Call | None,
    terms: Terms,
    footprint: Footprint,
) -> None:
    """Other terms or another checkpoint for a streamed module; if that cannot be, all is as before."""
    before = Origin.present(earlier)
    origin = before if path is None else Origin.of(module, path)
    if path is None and call is not None and earlier.is_own_process:
        earlier.workload(*call).plan(terms.budget.nbytes, terms.strategy, terms.options)
    earlier.close(remove_files=False)
    try:
        start(module, origin, call, terms, footprint)
    except BaseException:
        start(module, before, None, earlier.terms, footprint)
        raise
    if path is not None:
        before.remove_files()


def plain_workload(module: nn.Module, origin: Origin, call: Call, device: Device, footprint: Footprint) -> Workload:
    """What such calls ask of any budget, of a module that is not streamed and stays as it is."""
    weights = origin.collect(module, device)

    def dry(args: Any, kwargs: Any) -> Trace | None:
        with footprint.uncounted():
            prepare()
        return dry_trace(module, module.forward, weights, args, kwargs)

    fixed_nbytes = _fixed_nbytes(module, weights)
    return find_workload(module, weights, origin.checkpoint, *call, dry=dry, fixed_nbytes=fixed_nbytes)


def skeleton_workload(module: nn.Module, origin: Origin, call: Call, device: Device) -> Workload:
    """The same of a module whose weights and buffers were never loaded; it has its buffers afterwards."""
    load_buffers(module, origin)
    return plain_workload(module, origin, call, device, Footprint())


def _fixed_nbytes(module: nn.Module, weights: list[BoundWeight]) -> int:
    """Buffers, and parameters that are not streamed: in memory all the time."""
    streamed = {id(weight.parameter) for weight in weights}
    fixed = [p for p in module.parameters() if id(p) not in streamed] + list(module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in fixed)


def load_buffers(module: nn.Module, origin: Origin) -> None:
    """Persistent buffers are small and may be written to: they stay in memory."""
    wanted = [(name, buffer, origin.sources[name]) for name, buffer in module.named_buffers() if name in origin.sources]
    storage = FileStorage(origin.checkpoint.files)
    try:
        # A ResNet has hundreds, and each read waits for the drive: in turn they took a tenth of a second.
        with ThreadPoolExecutor(_BUFFER_READERS, thread_name_prefix="penstock-buffers") as readers:
            loaded = list(readers.map(lambda entry: read_weight(storage, entry[2]), wanted))
    finally:
        storage.close()
    for (name, buffer, _), data in zip(wanted, loaded, strict=True):
        owner, _, attribute = name.rpartition(".")
        if buffer.is_meta:
            module.get_submodule(owner)._buffers[attribute] = data
        else:
            buffer.copy_(data)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            raise UnsupportedModelError(
                f"buffer {name!r} is on the meta device and the checkpoint does not hold it: give it its values before "
                "streaming, or load the module with penstock.from_pretrained"
            )
