"""Records one pass of a module: its layer calls, what their operations really read, what they allocate.

Reads are seen at torch's dispatcher, below every Python shortcut: `nn.MultiheadAttention` reads
`out_proj.weight` without calling it, functional code reads weights that no layer is called for, tied weights
are read under two names. A read belongs to the innermost module that is running.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from penstock import operations
from penstock.errors import UnsupportedModelError
from penstock.operations import as_unwatched, grouped_product, work_seconds
from penstock.planning.kinds import ELEMENTAL, HIERARCHICAL, REUSABLE
from penstock.runtime.binding import BoundWeight
from penstock.trace import Trace, TracedCall

_GROUPED_PRODUCT = torch.ops.aten._grouped_mm.default


@dataclass(slots=True, eq=False)
class _Frame:
    """One running call of a module; `live_nbytes` is the most that tensors held from its begin to the next one's."""

    module: str
    began: float
    order: int
    last: int
    stalled: float
    live_nbytes: int
    work_seconds: float = 0.0
    reads: set[int] = field(default_factory=set)
    row_reads: set[int] = field(default_factory=set)
    kind: str = ELEMENTAL


class Recorder(TorchDispatchMode):
    """Active during the recorded pass.

    Args:
        weights: whose reads are recorded, by their index.
        stand_ins: for storages that stand for weights, which one.
        stalled: seconds that the pass has waited for storage so far; they are no compute.
        on_peak: called with the live bytes whenever they reach a new height; may raise.
        counts_work: estimate times from the work of each layer, because nothing is computed.
    """

    def __init__(
        self,
        weights: Sequence[BoundWeight],
        *,
        stand_ins: dict[int, int] | None = None,
        stalled: Callable[[], float] = lambda: 0.0,
        on_peak: Callable[[int], None] | None = None,
        counts_work: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = weights
        self._index = {id(weight.parameter): i for i, weight in enumerate(weights)}
        self._stand_ins = stand_ins or {}
        self._stalled, self._on_peak, self._counts_work = stalled, on_peak, counts_work
        self._stack: list[_Frame] = []
        self._frames: list[_Frame] = []
        self._live: dict[int, int] = {}
        self._live_nbytes = self.peak_nbytes = 0
        self._single_row: set[int] = set()
        self._row_counts: dict[int, int] = {}
        self._ended = 0.0

    # -- frames --

    def begin(self, module: str) -> None:
        """A module's forward begins."""
        order = len(self._frames)
        frame = _Frame(module, perf_counter(), order, order, self._stalled(), self._live_nbytes)
        self._frames.append(frame)
        self._stack.append(frame)

    def end(self) -> None:
        """The innermost module's forward ends."""
        frame = self._stack.pop()
        frame.last = len(self._frames) - 1
        self._ended = perf_counter()

    # -- operations --

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._stack and not func.is_view and func.namespace != "prim":  # views and device queries read nothing
            self._note_reads(func, args, kwargs)
        grouped = func is _GROUPED_PRODUCT and self._counts_work and args[0].dim() == 2 and args[1].dim() == 3
        if func._schema.is_mutable:
            self._refuse_writes(func, args, kwargs)
        result = grouped_product(*args[:2]) if grouped else as_unwatched(func, args, kwargs)
        self._note_allocations(result, _storages((*args, *kwargs.values())))
        if self._counts_work and self._stack:
            self._stack[-1].work_seconds += work_seconds(func, args, kwargs, result)
        return result

    def _note_reads(self, func: Any, args: Any, kwargs: Any) -> None:
        frame = self._stack[-1]
        if func in operations.ROW_READS:
            table = self._weight_of(args[0])
            if table is not None and frame.module in self._weights[table].row_paths:
                frame.row_reads.add(table)
                self._row_counts[table] = self._row_counts.get(table, 0) + args[1].numel()
                return
        found: list[int] = []
        rows = None
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, torch.Tensor):
                    weight = self._weight_of(tensor)
                    if weight is not None:
                        found.append(weight)
                    elif func in operations.PRODUCTS and tensor.dim() >= 1:
                        size = tensor.shape[-2] if tensor.dim() > 1 else 1
                        rows = size if rows is None else min(rows, size)
        frame.reads.update(found)
        kind = operations.kind_of(func)
        if (kind == REUSABLE and found) or (kind == HIERARCHICAL and frame.kind == ELEMENTAL):
            frame.kind = kind
        # Numbers of rows that depend on data, as all may where a pass could not be recorded dry, may be one.
        if rows == 1 or func in operations.PRODUCTS_OF_ANY_ROWS or (rows is not None and not self._counts_work):
            self._single_row.update(found)

    def _refuse_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        """A weight that is written to would lose what was written: its bytes come from the checkpoint each time."""
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                weight = self._weight_of(value) if isinstance(value, torch.Tensor) else None
                if weight is not None:
                    raise UnsupportedModelError(
                        f"a pass writes to the weight {self._weights[weight].name!r} ({func}), and what is streamed "
                        "cannot keep that: change the weight before streaming, or make it a buffer"
                    )

    def _weight_of(self, tensor: torch.Tensor) -> int | None:
        found = self._index.get(id(tensor))
        if found is None and (self._stand_ins or tensor._is_view()):
            found = self._stand_ins.get(tensor.untyped_storage()._cdata)
        return found

    def watch(self, weight: int, data: torch.Tensor) -> None:
        """Know views of `data` as views of this weight."""
        self._stand_ins[data.untyped_storage()._cdata] = weight

    def _note_allocations(self, result: Any, arguments: set[int]) -> None:
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if not isinstance(tensor, torch.Tensor) or tensor.is_sparse:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._live or key in self._stand_ins or key in arguments:
                continue
            nbytes = storage.nbytes()
            self._live[key] = nbytes
            self._live_nbytes += nbytes
            if self._frames:
                self._frames[-1].live_nbytes = max(self._frames[-1].live_nbytes, self._live_nbytes)
            weakref.finalize(storage, self._freed, key)
            if self._live_nbytes > self.peak_nbytes:
                self.peak_nbytes = self._live_nbytes
                if self._on_peak is not None:
                    self._on_peak(self._live_nbytes)

    def _freed(self, key: int) -> None:
        self._live_nbytes -= self._live.pop(key, 0)

    # -- result --

    def trace(self, *, is_timed: bool, arguments_nbytes: int) -> Trace:
        """What was recorded of a call whose arguments hold `arguments_nbytes`."""
        layers = [frame for frame in self._frames if frame.reads or frame.row_reads]
        position = [0] * len(self._frames)  # of the last layer begun at or before each frame
        count = -1
        for frame in self._frames:
            count += bool(frame.reads or frame.row_reads)
            position[frame.order] = count
        work, live_nbytes = self._work_by_layer(layers), self._live_by_layer(layers)
        calls = []
        for index, frame in enumerate(layers):
            following = layers[index + 1] if index + 1 < len(layers) else None
            until = following.began if following else self._ended
            stall = (following.stalled if following else self._stalled()) - frame.stalled
            calls.append(
                TracedCall(
                    frame.module,
                    tuple(sorted(frame.reads)),
                    tuple(sorted(frame.row_reads - frame.reads)),
                    work[index] if self._counts_work else max(until - frame.began - stall, 0.0),
                    position[frame.last],
                    live_nbytes[index] + arguments_nbytes,
                    frame.kind,
                )
            )
        return Trace(
            tuple(weight.name for weight in self._weights),
            tuple(calls),
            self.peak_nbytes + arguments_nbytes,
            frozenset(self._single_row),
            dict(self._row_counts),
            is_timed,
        )

    def _live_by_layer(self, layers: Sequence[_Frame]) -> list[int]:
        """The most that tensors held from each layer's begin to the next one's; the first also answers for before."""
        live_nbytes, layer = [0] * len(layers), 0
        for frame in self._frames:
            while layer + 1 < len(layers) and layers[layer + 1].order <= frame.order:
                layer += 1
            if layers:
                live_nbytes[layer] = max(live_nbytes[layer], frame.live_nbytes)
        return live_nbytes

    def _work_by_layer(self, layers: Sequence[_Frame]) -> list[float]:
        """Estimated seconds of each layer, the work of frames without reads given to the layer begun before them."""
        work, layer = [0.0] * len(layers), 0
        for frame in self._frames:
            while layer + 1 < len(layers) and layers[layer + 1].order <= frame.order:
                layer += 1
            if layers:
                work[layer] += frame.work_seconds
        return work


def _storages(values: Sequence[Any]) -> set[int]:
    """The storages of tensors among an operation's arguments: a result over one of them is a view, nothing new."""
    return {
        tensor.untyped_storage()._cdata
        for value in values
        for tensor in (value if isinstance(value, list | tuple) else (value,))
        if isinstance(tensor, torch.Tensor) and not tensor.is_sparse
    }
