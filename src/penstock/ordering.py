"""The order in which a model's pass uses its weights, without running it."""

from __future__ import annotations

import os
from typing import Any

import torch

from penstock.dryrun import dry_trace
from penstock.errors import UnsupportedModelError
from penstock.hub import load_skeleton
from penstock.runtime.collecting import collect_weights


def execution_order(cls: type, path: str | os.PathLike[str], example: dict[str, Any]) -> tuple[str, ...]:
    """Names of the model's weights in the order of their first use; empty where that cannot be told beforehand.

    Args:
        cls: a transformers or diffusers model class.
        path: its local folder.
        example: arguments of a forward, by name.

    Raises:
        CheckpointError: the folder's checkpoint is not sound, or not the class's.
    """
    try:
        skeleton = load_skeleton(cls, path)
    except UnsupportedModelError:
        return ()  # its weights are not in the file as the class has them
    module = skeleton.module.eval()
    weights = collect_weights(module, dict(skeleton.sources), torch.device("cpu"))
    for weight in weights:
        weight.adopt()
    trace = dry_trace(module, module.forward, weights, (), example)
    if trace is None:
        return ()
    reads = (index for call in trace.calls for index in (*call.reads, *call.row_reads))
    return tuple(dict.fromkeys(trace.weights[index] for index in reads))
