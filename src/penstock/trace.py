"""The recorded pass: which layer calls read which weights, how long they compute, what they allocate."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from penstock.errors import PlanError
from penstock.planning.kinds import REUSABLE, SLOWDOWNS

TRACE_VERSION = 8


@dataclass(frozen=True, slots=True)
class TracedCall:
    """One layer call.

    Attributes:
        module: its path; the root's is the empty string.
        reads: indices of the weights that its operations read whole.
        row_reads: indices of the tables that it looks rows up in.
        seconds: from its begin to the next call's begin.
        last: index of the last call that began before it ended.
        live_nbytes: most bytes that the pass's own tensors, arguments included, held in that time; 0: not known.
        kind: its class, one of `planning.kinds`: of the operations that read its weights.
    """

    module: str
    reads: tuple[int, ...]
    row_reads: tuple[int, ...]
    seconds: float
    last: int
    live_nbytes: int = 0
    kind: str = REUSABLE


@dataclass(frozen=True)
class Trace:
    """One pass.

    Attributes:
        weights: names of the weights that indices refer to.
        calls: layer calls in the order of their beginning.
        activations_nbytes: most bytes that the pass's own tensors held at one time, outputs and arguments included.
        single_row: indices of weights that multiply a single row, which kernels compute by other instructions.
        row_counts: for each table that rows are looked up in, how many a pass reads.
        overhead_nbytes: what the process took beyond arena and I/O buffers in a measured pass, activations included;
            0 if no pass was measured.
        ebbing_nbytes: the same for plans whose arena gives memory to activations now and then, as if it were all there;
            0 if no pass of one was measured. It is more where what activations leave is not given back at once.
        is_timed: whether `seconds` were measured, on real weights; else they are estimates by work.
    """

    weights: tuple[str, ...]
    calls: tuple[TracedCall, ...]
    activations_nbytes: int
    single_row: frozenset[int]
    row_counts: dict[int, int]
    is_timed: bool
    overhead_nbytes: int = 0
    ebbing_nbytes: int = 0

    def to_json(self) -> str:
        """The trace as text, for `from_json`."""
        fields = asdict(self)
        fields["single_row"] = sorted(self.single_row)
        fields["row_counts"] = sorted(self.row_counts.items())
        return json.dumps({"version": TRACE_VERSION, **fields})

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """A trace from text that may have been damaged.

        Raises:
            PlanError: it is not a sound trace.
        """
        try:
            fields = json.loads(text)
            if fields["version"] != TRACE_VERSION:
                raise PlanError(f"trace version {fields['version']!r} is not {TRACE_VERSION}: record it again")
            names = tuple(str(name) for name in fields["weights"])
            calls = tuple(_call(call, len(names), len(fields["calls"])) for call in fields["calls"])
            return cls(
                names,
                calls,
                _at_least_zero(fields["activations_nbytes"]),
                frozenset(_index(i, len(names)) for i in fields["single_row"]),
                {_index(i, len(names)): _at_least_zero(count) for i, count in fields["row_counts"]},
                bool(fields["is_timed"]),
                _at_least_zero(fields["overhead_nbytes"]),
                _at_least_zero(fields["ebbing_nbytes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"the trace is damaged ({error!r}): record it again") from error


def _call(fields: dict[str, Any], weights: int, calls: int) -> TracedCall:
    seconds = float(fields["seconds"])
    if not 0 <= seconds < 1e6:
        raise ValueError(f"seconds {seconds}")
    return TracedCall(
        str(fields["module"]),
        tuple(_index(i, weights) for i in fields["reads"]),
        tuple(_index(i, weights) for i in fields["row_reads"]),
        seconds,
        _index(fields["last"], calls),
        _at_least_zero(fields["live_nbytes"]),
        _kind(fields["kind"]),
    )


def _kind(value: Any) -> str:
    if not isinstance(value, str) or value not in SLOWDOWNS:
        raise ValueError(f"kind {value!r}")
    return value


def _index(value: Any, size: int) -> int:
    if not isinstance(value, int) or not 0 <= value < size:
        raise ValueError(f"index {value!r} of {size}")
    return value


def _at_least_zero(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"count {value!r}")
    return value
