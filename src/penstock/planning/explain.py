"""A plan as text for people: where the budget goes, what stays, what streams, and where a pass waits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from penstock.budget import format_size
from penstock.planning.joining import JOINER
from penstock.planning.memory import memory_over_time, peak_call

if TYPE_CHECKING:
    from penstock.planning.plan import Plan

_OF_SLICE = re.compile(r"(?P<layer>.*)\[\d+:\d+\]")
_ROOT = "(the model itself)"
_LARGEST = 3
_WORST_STALLS = 5
_WORTH_TELLING = 1e-5  # seconds
_DETAIL_LENGTH = 160


def explain(plan: Plan) -> str:
    """The text that `Plan.explain` returns, several lines."""
    lines = [f"Plan ({plan.strategy}) for a budget of {format_size(plan.budget_nbytes)}", *_budget(plan)]
    lines += [
        "Memory at its peak",
        *_peak(plan),
        "Weights",
        *_weights(plan),
        "Warm pass",
        *_times(plan),
        *_stalls(plan),
    ]
    if plan.details:
        lines += ["Details", *(f"  {title:<18}{_shortened(text)}" for title, text in plan.details)]
    return "\n".join(lines)


def _budget(plan: Plan) -> list[str]:
    reserve = plan.reserve
    sizes = dict(enumerate(plan.weight_nbytes))
    resident_nbytes = sum(sizes.get(slot.weight, 0) for slot in plan.resident)
    spare_nbytes = plan.budget_nbytes - plan.prediction.peak_nbytes
    rows = [
        ("resident weights", resident_nbytes),
        ("streaming space", plan.arena_nbytes - resident_nbytes),
        *([("staging", plan.staging_nbytes)] if plan.staging_nbytes else []),
        ("activations", reserve.activations_nbytes),
        ("I/O buffers", reserve.io_nbytes),
        ("bookkeeping", reserve.bookkeeping_nbytes),
        *([("ebbs, to take off", plan.ebbed_nbytes)] if plan.ebbed_nbytes else []),
        ("not needed", spare_nbytes),
    ]
    return [f"  {name:<18}{format_size(nbytes):>12}" for name, nbytes in rows]


def _peak(plan: Plan) -> list[str]:
    """What the call that needs most has in memory, by kind, and how little another call needs."""
    call = peak_call(plan)
    if call is None:
        return ["  no call"]
    over_time = memory_over_time(plan)
    rows = [("during", plan.call_names[call] or _ROOT)]
    rows += [(kind, f"{format_size(nbytes):>12}") for kind, nbytes in over_time[call].by_kind.items() if nbytes]
    least = min(range(len(over_time)), key=lambda index: over_time[index].total_nbytes)
    rows.append(("all together", f"{format_size(over_time[call].total_nbytes):>12}"))
    if plan.ebbs:
        lent_nbytes = max(memory.lent_nbytes for memory in over_time)
        rows.append(("lent", f"{format_size(lent_nbytes):>12} of the streaming space, in {len(plan.ebbs)} ebbs a pass"))
    rows.append(("least", f"{format_size(over_time[least].total_nbytes):>12} (during {plan.call_names[least]})"))
    return [f"  {title:<18}{text}" for title, text in rows]


def _weights(plan: Plan) -> list[str]:
    streamed = dict.fromkeys(load.weight for load in plan.loads)
    lines = [
        _group(plan, "resident", [slot.weight for slot in plan.resident]),
        _group(plan, "streamed", streamed),
    ]
    if plan.loads:
        read = f"{format_size(plan.prediction.streamed_nbytes)} in {len(plan.loads)} loads"
        lines.append(f"  {'read per pass':<18}{read}")
    if plan.joins:
        joined = sum(len(item.weights) for item in plan.joins)
        lines.append(f"  {'together':<18}{joined} weights in {len(plan.joins)} joins")
    if plan.rows:
        lines.append(_group(plan, "read by rows", plan.rows))
    if layers := _sliced_layers(plan):
        count = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
        lines.append(f"  {'in slices':<18}{count}: {_shortened(', '.join(layers))}")
    return lines


def _sliced_layers(plan: Plan) -> list[str]:
    """The layers that are computed slice by slice: those within which there are calls that name rows."""
    found = (_OF_SLICE.fullmatch(name) for name in plan.call_names)
    return list(dict.fromkeys(match["layer"] or _ROOT for match in found if match)) if plan.cuts else []


def _group(plan: Plan, title: str, weights: Iterable[int]) -> str:
    sizes = dict(enumerate(plan.weight_nbytes))
    group = sorted(weights, key=lambda weight: -sizes.get(weight, 0))
    count = sum(len(plan.weight_names[weight].split(JOINER)) for weight in group)
    text = f"  {title:<18}{count} weights, {format_size(sum(sizes.get(weight, 0) for weight in group))}"
    if group:
        largest = (f"{plan.weight_names[weight]} {format_size(sizes.get(weight, 0))}" for weight in group[:_LARGEST])
        text += f"; largest: {', '.join(largest)}"
    return text


def _times(plan: Plan) -> list[str]:
    prediction = plan.prediction
    return [
        f"  {'predicted':<18}{_milliseconds(prediction.warm_seconds)}, of it "
        f"{_milliseconds(prediction.stall_seconds)} waiting for storage",
        f"  {'lower bound':<18}{_milliseconds(prediction.lower_bound_seconds)} (compute, or bytes over bandwidth)",
        f"  {'first pass':<18}{_milliseconds(prediction.cold_seconds)}",
        f"  {'peak':<18}{format_size(prediction.peak_nbytes)}",
    ]


def _stalls(plan: Plan) -> list[str]:
    stalls = sorted(enumerate(plan.prediction.call_stall_seconds), key=lambda item: (-item[1], item[0]))
    stalls = [(call, seconds) for call, seconds in stalls if seconds > _WORTH_TELLING]
    if not stalls:
        return ["  no call waits"]
    lines = [f"  {len(stalls)} of {len(plan.call_names)} calls wait, most of all"]
    lines += [f"    {_milliseconds(seconds):>10}  {plan.call_names[call]}" for call, seconds in stalls[:_WORST_STALLS]]
    return lines


def _shortened(text: str) -> str:
    return text if len(text) <= _DETAIL_LENGTH else f"{text[:_DETAIL_LENGTH]}... ({len(text)} characters, in the JSON)"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
