"""Embedding tables are not loaded: the rows that a call needs are read.

While an embedding layer runs, its lookup is answered from the rows that its indices name, each read once from
the checkpoint into a compact table. A lookup copies rows, so the answer is the same to the bit.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.checkpoint import WeightSource
from penstock.runtime.binding import torch_dtype
from penstock.runtime.storage import Storage

SPAN_NBYTES = 256 << 10
GAP_NBYTES = 16 << 10
"""Rows closer than this are read in one span: a request costs about as much as this many bytes."""
READERS = 4


class RowTable:
    """Rows of one embedding table, read from storage.

    Args:
        storage: where the table's file is open.
        source: the table: shape (rows, width), in one piece.
    """

    def __init__(self, storage: Storage, source: WeightSource) -> None:
        if len(source.pieces) != 1 or len(source.shape) != 2:
            raise ValueError("rows are read from two-dimensional tables that lie in one piece")
        self._storage = storage
        self._piece = source.pieces[0]
        self._dtype = torch_dtype(source.dtype)
        self.rows, self.width = source.shape
        self._row_nbytes = self.width * self._dtype.itemsize

    def read(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
        """The table's `rows` (sorted, unique) as a tensor of shape (len(rows), width)."""
        compact = torch.empty((len(rows), self.width), dtype=self._dtype)
        if not len(rows):
            return compact
        spans = self._spans(rows)
        errors: list[BaseException] = []
        take = iter(spans)
        lock = threading.Lock()

        def serve() -> None:
            buffer = mmap.mmap(
                -1, max(end - begin for begin, end, _, _ in spans), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
            while True:
                with lock:
                    span = next(take, None)
                if span is None or errors:
                    return
                try:
                    self._read_span(buffer, rows, compact, *span)
                except BaseException as error:
                    errors.append(error)

        helpers = [
            threading.Thread(target=serve, name=f"penstock-rows-{i}", daemon=True)
            for i in range(min(READERS, len(spans)) - 1)
        ]
        for helper in helpers:
            helper.start()
        serve()
        for helper in helpers:
            helper.join()
        if errors:
            raise errors[0]
        return compact

    def _spans(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> list[tuple[int, int, int, int]]:
        """(begin, end) in the file, in whole blocks, and the (first, last) index into `rows` that each brings."""
        block = self._storage.block_nbytes
        starts = self._piece.file_offset + rows * self._row_nbytes
        spans: list[tuple[int, int, int, int]] = []
        for index, start in enumerate(starts.tolist()):
            begin = start // block * block
            end = -(-(start + self._row_nbytes) // block) * block
            if spans and begin - spans[-1][1] < GAP_NBYTES and end - spans[-1][0] <= SPAN_NBYTES:
                spans[-1] = (spans[-1][0], end, spans[-1][2], index)
            else:
                spans.append((begin, end, index, index))
        return spans

    def _read_span(
        self, buffer: mmap.mmap, rows: Any, compact: torch.Tensor, begin: int, end: int, first: int, last: int
    ) -> None:
        needed = self._piece.file_offset + (int(rows[last]) + 1) * self._row_nbytes - begin
        with memoryview(buffer) as whole, whole[: end - begin] as view:
            self._storage.read(self._piece.file, begin, view, needed)
        base = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        for index in range(first, last + 1):
            at = self._piece.file_offset + int(rows[index]) * self._row_nbytes - begin
            ctypes.memmove(compact.data_ptr() + index * self._row_nbytes, base + at, self._row_nbytes)


class RowLookup(TorchDispatchMode):
    """While active, answers lookups in one parameter's table from storage.

    Args:
        count: told the bytes of the rows that were read, and since when on the clock of `time.perf_counter`.
    """

    def __init__(self, parameter: torch.Tensor, table: RowTable, count: Callable[[int, float], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameter, self._table, self._count = parameter, table, count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding.default and args[0] is self._parameter:
            indices = args[1]
            if indices.dtype not in (torch.int32, torch.int64):  # torch says what is wrong with them
                return func(
                    torch.empty((1, self._table.width), dtype=self._parameter.dtype), *args[1:], **(kwargs or {})
                )
            unique, inverse = np.unique(indices.reshape(-1).numpy(), return_inverse=True)
            if len(unique) and (unique[0] < 0 or unique[-1] >= self._table.rows):
                raise IndexError(
                    f"index {unique[0] if unique[0] < 0 else unique[-1]} is out of range for an embedding table "
                    f"of {self._table.rows} rows"
                )
            since = perf_counter()
            rows = self._table.read(unique.astype(np.int64))
            self._count(rows.numel() * rows.element_size(), since)
            return torch.ops.aten.embedding.default(rows, torch.from_numpy(inverse).view(indices.shape))
        kwargs = kwargs or {}
        if getattr(kwargs.get("device"), "type", None) == "meta":  # positions, made where the absent table seems to be
            kwargs = {**kwargs, "device": torch.device("cpu")}
        return func(*args, **kwargs)
