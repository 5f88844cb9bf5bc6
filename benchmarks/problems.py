"""Planning problems of models whose weights are nowhere: as if they lay in one file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.model import Model, root
from benchmarks.ways import skeleton
from penstock.checkpoint import Piece, WeightSource
from penstock.dryrun import dry_trace, prepare
from penstock.machine import StorageProfile, storage_profile
from penstock.planning import Problem
from penstock.profile import make_problem
from penstock.runtime.binding import BoundWeight
from penstock.runtime.collecting import collect_weights
from penstock.trace import Trace

HEADER_NBYTES = 1 << 16


@dataclass(frozen=True)
class Workload:
    """A model's pass, traced without weights, and the storage of this machine."""

    trace: Trace
    weights: list[BoundWeight]
    storage: StorageProfile
    fixed_nbytes: int

    @property
    def weights_nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.source.nbytes for weight in self.weights)

    def problem(self, budget_nbytes: int) -> Problem:
        """What a pass within the budget poses."""
        return make_problem(
            self.trace,
            self.weights,
            self.storage,
            budget_nbytes=budget_nbytes,
            activations_nbytes=self.trace.activations_nbytes,
            fixed_nbytes=self.fixed_nbytes,
            overhead_nbytes=0,
            moved=frozenset(),
        )


def trace_without_weights(model: Model) -> Workload:
    """Trace one call of `model`.

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
    fixed_nbytes = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    return Workload(trace, weights, storage_profile(root()), fixed_nbytes)


def imagine_sources(module: nn.Module) -> dict[str, WeightSource]:
    """Where the parameters of `module` would lie in a file that holds them one after another."""
    sources, offset = {}, HEADER_NBYTES
    for name, parameter in module.named_parameters():
        nbytes = parameter.numel() * parameter.element_size()
        dtype = str(parameter.dtype).removeprefix("torch.")
        sources[name] = WeightSource(dtype, tuple(parameter.shape), (Piece(0, offset, nbytes, 0),))
        offset += nbytes
    return sources
