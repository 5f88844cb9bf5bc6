"""What operations, as torch's dispatcher names them, are to who records them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from penstock.planning.kinds import ELEMENTAL, HIERARCHICAL, REUSABLE

_FLOPS_PER_SECOND = 1e11  # only their ratio matters, until a real pass has measured
_BYTES_PER_SECOND = 1e10

_aten = torch.ops.aten
ROW_READS = {_aten.embedding.default}
PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.mv.default,
    _aten.addmv.default,
    _aten.linear.default,
    _aten.matmul.default,
}
PRODUCTS_OF_ANY_ROWS = {
    _aten._grouped_mm.default,  # as many as an expert is given
    _aten.lstm.input,  # a step multiplies as many as the batch has; so do the others
    _aten.lstm.data,
    _aten.gru.input,
    _aten.gru.data,
    _aten.rnn_tanh.input,
    _aten.rnn_tanh.data,
    _aten.rnn_relu.input,
    _aten.rnn_relu.data,
    _aten.lstm_cell.default,
    _aten.gru_cell.default,
    _aten.einsum.default,  # whichever of its dimensions they are
    _aten.tensordot.default,
    _aten.bilinear.default,
}
_FUSED_LAYERS = {_aten._transformer_encoder_layer_fwd.default, _aten._native_multi_head_attention.default}
_REDUCTIONS = {"mean", "std", "std_mean", "var", "var_mean"}  # of which libraries write normalisations out by hand


@functools.cache
def kind_of(func: Any) -> str:
    """The class of an operation, one of `planning.kinds`."""
    name = func.overloadpacket.__name__
    if (
        func in PRODUCTS
        or func in PRODUCTS_OF_ANY_ROWS
        or func in _FUSED_LAYERS
        or func.overloadpacket in flop_registry
        or "conv" in name
    ):
        return REUSABLE
    if "softmax" in name or name in _REDUCTIONS or ("norm" in name and "normal" not in name):
        return HIERARCHICAL
    return ELEMENTAL


def as_unwatched(func: Any, args: Any, kwargs: Any) -> Any:
    """Call an operation from within `__torch_dispatch__` with the bits that it has without one.

    Under inference mode composite operations arrive here whole, and torch has switched off the key by which views of
    weights know that these require gradients; `matmul` folds its arguments or not by that, which changes last bits.
    """
    if not torch.is_inference_mode_enabled() or func.namespace == "prim" or not func._can_decompose():
        return func(*args, **kwargs)
    with torch._C._PreserveDispatchKeyGuard():
        torch._C._dispatch_tls_set_dispatch_key_excluded(torch._C.DispatchKey.ADInplaceOrView, False)
        return func(*args, **kwargs)


def grouped_product(rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """What experts make of their rows, in shape: torch's own fake kernel knows bfloat16 only."""
    return rows.new_empty(rows.shape[0], experts.shape[2])


def work_seconds(func: Any, args: Any, kwargs: Any, result: Any) -> float:
    """A rough time for one operation: arithmetic where it is known, plus the memory that it writes."""
    count = flop_registry.get(func.overloadpacket)
    flops = count(*args, **kwargs, out_val=result) if count is not None else 0
    written = sum(
        tensor.numel() * tensor.element_size()
        for tensor in (result if isinstance(result, list | tuple) else (result,))
        if isinstance(tensor, torch.Tensor)
    )
    return float(flops) / _FLOPS_PER_SECOND + written / _BYTES_PER_SECOND
