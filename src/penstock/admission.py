"""Which calls a plan has room for: what is known of every kind of call, and what it asks of the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from penstock.runtime.binding import BoundWeight
from penstock.signature import Signature
from penstock.trace import Trace, TracedCall
from penstock.tracestore import TraceStore

_QUANTUM_NBYTES = 1 << 20
"""Measured overheads are rounded up to this, so that two processes make the same plan."""


class Admission:
    """The traces of one streamed module, kept between processes by `store`.

    Attributes:
        primary: the trace that plans are made for: the first, or one with more layer calls.
        single_row: weights that some known call multiplies with a single row.
    """

    def __init__(self, store: TraceStore) -> None:
        self._store = store
        self._traces: dict[Signature, Trace] = {}
        self._measured: set[tuple[Signature, bool]] = set()
        self.primary: Trace | None = None
        self.single_row = store.single_row()

    def use_latest(self) -> Trace | None:
        """Begin with the kind of call that an earlier process recorded last."""
        self.primary = self._store.latest()
        return self.primary

    def trace(self, signature: Signature) -> Trace | None:
        """The trace of exactly this kind of call, from this process or an earlier one."""
        found = self._traces.get(signature) or self._store.get(signature)
        if found is not None:
            self._adopt(signature, found)
        return found

    def add(self, signature: Signature, trace: Trace) -> None:
        """Know and keep the trace of a kind of call."""
        before = self._traces.get(signature)
        self._adopt(signature, trace)
        if before is not None and self.primary is before:
            self.primary = trace
        self._store.put(signature, trace)

    def _adopt(self, signature: Signature, trace: Trace) -> None:
        self._traces[signature] = trace
        self.single_row |= trace.single_row
        if (
            self.primary is None
            or len(trace.calls) > len(self.primary.calls)
            or not self.primary.calls
            or (self.primary.calls == trace.calls and self.primary.overhead_nbytes < trace.overhead_nbytes)
        ):
            self.primary = trace

    def take_to_measure(self, signature: Signature, *, is_ebbing: bool) -> bool:
        """Whether this exact kind of call is known, and was not measured by this process yet with such a plan.

        Another process may have measured less: how much the allocator retains is a matter of luck.
        """
        if signature not in self._traces or (signature, is_ebbing) in self._measured:
            return False
        self._measured.add((signature, is_ebbing))
        return True

    def activations_nbytes(self, signature: Signature) -> int | None:
        """Bytes that a call like this needs for its own tensors and its arguments; None where nothing tells."""
        needs = []
        for known, trace in self._traces.items():
            growth = known.growth_to(signature)
            if growth is not None:
                needs.append(int(trace.activations_nbytes * growth))
        return min(needs, default=None)

    @property
    def overhead_nbytes(self) -> int:
        """What known calls were measured to take beyond arena and I/O buffers; 0 before any was."""
        return max((trace.overhead_nbytes for trace in self._known()), default=0)

    @property
    def ebbing_nbytes(self) -> int:
        """The same for plans that ebb; 0 before any was."""
        return max((trace.ebbing_nbytes for trace in self._known()), default=0)

    def _known(self) -> list[Trace]:
        """The traces that count: of all kinds of calls, or what plans begin with."""
        return list(self._traces.values()) or ([self.primary] if self.primary is not None else [])

    def activation_shares(self) -> tuple[float, ...]:
        """For each call of `primary` the largest part of its activations that any kind of call known has there.

        Where another kind goes through other layers, nobody knows when it has what: all of it, at any time.
        """
        if self.primary is None:
            return ()
        shares = [0.0] * len(self.primary.calls)
        modules = [call.module for call in self.primary.calls]
        for trace in (self.primary, *self._traces.values()):
            if [call.module for call in trace.calls] != modules:
                return (1.0,) * len(shares)
            most_nbytes = trace.activations_nbytes
            for index, call in enumerate(trace.calls):
                is_known = call.live_nbytes and most_nbytes
                shares[index] = max(shares[index], min(call.live_nbytes / most_nbytes, 1.0) if is_known else 1.0)
        return tuple(shares)

    def note_overhead(self, signature: Signature, nbytes: int, *, is_ebbing: bool) -> None:
        """A pass of this kind was measured, with a plan that ebbs or one that does not."""
        trace = self._traces.get(signature)
        if trace is None:
            return
        rounded = max(-(-nbytes // _QUANTUM_NBYTES), 1) * _QUANTUM_NBYTES  # 0 stands for unmeasured
        found = trace
        if is_ebbing:
            found = replace(found, ebbing_nbytes=max(found.ebbing_nbytes, rounded))
        if not is_ebbing or not self.overhead_nbytes:  # nothing else tells yet
            found = replace(found, overhead_nbytes=max(found.overhead_nbytes, rounded))
        if found != trace:
            self.add(signature, found)


def with_shares(trace: Trace, shares: Sequence[float]) -> Trace:
    """`trace`, whose calls have these parts of its activations."""
    calls = (
        replace(call, live_nbytes=math.ceil(share * trace.activations_nbytes))
        for call, share in zip(trace.calls, shares, strict=True)
    )
    return replace(trace, calls=tuple(calls))


def assumed_trace(root: nn.Module, weights: Sequence[BoundWeight]) -> Trace:
    """Before anything is known: layers run in the order in which they were registered."""
    reads: dict[int, list[int]] = {}
    for index, weight in enumerate(weights):
        for owner, _ in weight.owners:
            reads.setdefault(id(owner), []).append(index)
    calls: list[TracedCall] = []
    tables = {path for weight in weights for path in weight.row_paths}
    for name, module in root.named_modules():
        if id(module) in reads and name not in tables:
            read = tuple(dict.fromkeys(reads[id(module)]))
            seconds = sum(weights[i].source.nbytes for i in read) / 1e10
            calls.append(TracedCall(name, read, (), seconds, len(calls)))
    return Trace(tuple(weight.name for weight in weights), tuple(calls), 0, frozenset(), {}, False)
