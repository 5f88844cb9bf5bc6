"""Planning problems of models whose weights are nowhere: as if they lay in one file."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.model import Model, root
from benchmarks.ways import skeleton
from penstock.checkpoint import Piece, WeightSource
from penstock.dryrun import dry_trace, prepare
from penstock.machine import storage_profile
from penstock.runtime.binding import to_realign
from penstock.runtime.collecting import collect_weights
from penstock.workload import Workload

HEADER_NBYTES = 1 << 16


def trace_without_weights(model: Model) -> Workload:
    """One call of `model`, on the storage of the cache folder.

    Raises:
        ValueError: it cannot be traced without weights.
    """
    module = skeleton(model)
    weights = collect_weights(module, imagine_sources(module), torch.device("cpu"))
    prepare()
    trace = dry_trace(module, module.forward, weights, (), model.inputs())
    if trace is None:
        raise ValueError(f"{model.title} cannot be traced without its weights")
    root().mkdir(parents=True, exist_ok=True)
    return Workload(
        trace=trace,
        weights=weights,
        storage=storage_profile(root()),
        activations_nbytes=trace.activations_nbytes,
        fixed_nbytes=sum(buffer.numel() * buffer.element_size() for buffer in module.buffers()),
        moved=to_realign(weights, trace.single_row),
        place=root(),
    )


def imagine_sources(module: nn.Module) -> dict[str, WeightSource]:
    """Where the parameters of `module` would lie in a file that holds them one after another."""
    sources, offset = {}, HEADER_NBYTES
    for name, parameter in module.named_parameters():
        nbytes = parameter.numel() * parameter.element_size()
        dtype = str(parameter.dtype).removeprefix("torch.")
        sources[name] = WeightSource(dtype, tuple(parameter.shape), (Piece(0, offset, nbytes, 0),))
        offset += nbytes
    return sources
