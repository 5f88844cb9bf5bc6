"""What is recorded is what happened; it changes no bit; it ends with its block; it survives whatever passes survive."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from penstock.planning.strategies import names
from penstock.report.recorded import UNATTENDED, Recording, recorded_tracks
from penstock.report.timeline import COMPUTE, COPY, PASSES, STALLS, STORAGE, Span, Tracks
from penstock.runtime.events import EventLog, NotedLoad

from ..adversary import AdversarialDevice  # noqa: TID252
from ..streaming import WIDTH, counted_memory, equal, is_streaming, plan_of, stream_tightly, weight_nbytes  # noqa: TID252
from ..zoo import CASES, Block, Tied, X, tokens  # noqa: TID252
from .traces import spans_of

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")


class Trap(nn.Module):
    """Raises what it is told to, in the middle of its own work."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        self.error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 2 and self.error is not None:
                raise self.error
        return x


@pytest.fixture
def streamed() -> Any:
    """A module of five blocks of which some stream."""
    torch.manual_seed(0)
    module = stream_tightly(Trap(), (X,), share=0.05)
    yield module
    penstock.restore(module)


def run(module: nn.Module, *args: Any, passes: int = 1) -> list[Any]:
    with torch.inference_mode():
        return [copy.deepcopy(module(*args)) for _ in range(passes)]


def of(tracks: Tracks, track: str) -> list[Span]:
    return [span for span in tracks.spans if span.track == track]


def test_a_recorded_pass_shows_its_layers_loads_and_passes(streamed: nn.Module) -> None:
    run(streamed, X, passes=2)
    with penstock.inspect(streamed).record() as recording:
        run(streamed, X, passes=3)
    assert is_streaming(streamed)
    tracks = recording.tracks()
    spans_of(recording.to_chrome_trace())
    plan = plan_of(streamed)
    assert [span.name for span in of(tracks, PASSES)] == ["pass 1", "pass 2", "pass 3"]
    layers = [span.name for span in of(tracks, COMPUTE) if span.name != UNATTENDED]
    assert layers == [plan.call_names[load.first_call] for load in plan.loads] * 3
    loaded = [span.name for span in of(tracks, STORAGE)]
    assert set(loaded) == {plan.weight_names[load.weight] for load in plan.loads}
    assert len(loaded) >= 2 * len(plan.loads), "of three passes, only the first one's loads may have come before"
    assert {span.name for span in of(tracks, STALLS)} <= set(plan.call_names)
    assert tracks.arena_nbytes == plan.arena_nbytes


def test_compute_and_stalls_fill_every_recorded_pass(streamed: nn.Module) -> None:
    with penstock.inspect(streamed).record() as recording:
        run(streamed, X, passes=3)
    tracks = recording.tracks()
    seconds = {
        track: sum(s.end_seconds - s.begin_seconds for s in of(tracks, track)) for track in (PASSES, COMPUTE, STALLS)
    }
    assert seconds[COMPUTE] + seconds[STALLS] == pytest.approx(seconds[PASSES])


@pytest.mark.parametrize("name", CASES)
def test_recording_changes_no_bit_and_any_order_of_calls_gives_a_sound_trace(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    resident = case.build()
    torch.manual_seed(7)
    with torch.inference_mode():
        expected = [copy.deepcopy(resident(*call)) for call in case.calls]
    torch.manual_seed(0)
    share = 0.5 if "by value" in name else 0.05
    module = stream_tightly(case.build(), *case.calls, share=share, plan_now=False, device=AdversarialDevice(len(name)))
    torch.manual_seed(7)
    with penstock.inspect(module).record() as recording:
        found = [run(module, *call)[0] for call in case.calls]
    passes = penstock.inspect(module).stats.passes
    penstock.restore(module)
    assert [equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(expected)
    spans_of(recording.to_chrome_trace())
    assert len(of(recording.tracks(), PASSES)) == passes


@pytest.mark.parametrize("strategy", names())
def test_passes_by_any_strategy_are_recorded_with_the_copies_that_they_make(strategy: str) -> None:
    torch.manual_seed(0)
    example = torch.zeros(3, WIDTH)
    budget = 8 * weight_nbytes(Trap())
    module = penstock.stream(Trap().eval(), budget=budget, example=example, strategy=strategy)
    with pytest.raises(penstock.BudgetInfeasibleError) as refused:
        penstock.inspect(module).budget = 1
    penstock.inspect(module).budget = refused.value.needed_nbytes
    with penstock.inspect(module).record() as recording:
        run(module, example, passes=3)
    plan = plan_of(module)
    penstock.restore(module)
    spans = spans_of(recording.to_chrome_trace())
    assert plan.strategy == strategy
    assert len(spans["passes"]) == 3
    copied = {span["name"] for span in spans["copy"]}
    streamed = {plan.weight_names[load.weight] for load in plan.loads}
    assert copied == (streamed if plan.staging_nbytes else set())
    assert streamed <= {span["name"] for name, track in spans.items() if name.startswith("storage") for span in track}


@pytest.mark.parametrize("error", [ValueError("own"), KeyboardInterrupt()], ids=repr)
def test_a_pass_that_is_cut_off_leaves_the_recording_sound(error: BaseException) -> None:
    torch.manual_seed(0)
    module = stream_tightly(Trap(), (X,), share=0.05, device=AdversarialDevice(1))
    with penstock.inspect(module).record() as recording:
        for _ in range(3):
            module.error = error
            with pytest.raises(type(error)):
                run(module, X)
            module.error = None
            run(module, X)
    spans_of(recording.to_chrome_trace())
    assert len(of(recording.tracks(), PASSES)) == 6
    penstock.restore(module)


def test_a_plan_that_changes_meanwhile_is_followed(streamed: nn.Module) -> None:
    stream = penstock.inspect(streamed)
    with stream.record() as recording:
        run(streamed, X, passes=2)
        stream.budget = stream.budget.nbytes + weight_nbytes(streamed) // 3
        run(streamed, X, passes=2)
    spans_of(recording.to_chrome_trace())
    tracks = recording.tracks()
    assert len(of(tracks, PASSES)) == 4
    assert tracks.arena_nbytes == plan_of(streamed).arena_nbytes
    residents = {stream.plan.weight_names[slot.weight] for slot in stream.plan.resident}
    assert residents & {span.name for span in of(tracks, STORAGE) if span.details.get("stays")}


def test_rows_that_a_layer_reads_by_itself_are_storage_and_a_stall() -> None:
    torch.manual_seed(0)
    module = stream_tightly(Tied(), (tokens(8),), share=0.05)
    with penstock.inspect(module).record() as recording:
        run(module, tokens(8))
    found = recording.tracks()
    penstock.restore(module)
    rows = [span for span in of(found, STORAGE) if span.name == "rows of a table"]
    assert bool(rows) == bool(
        [span for span in of(found, STALLS) if span.details.get("waits for") == "rows of a table"]
    )


def test_nothing_is_noted_outside_of_the_block(streamed: nn.Module) -> None:
    run(streamed, X)
    with penstock.inspect(streamed).record() as recording:
        run(streamed, X)
    before = recording.to_chrome_trace()
    run(streamed, X, passes=2)
    assert recording.to_chrome_trace() == before


def test_only_one_recording_at_a_time(streamed: nn.Module) -> None:
    stream = penstock.inspect(streamed)
    with stream.record(), pytest.raises(penstock.StreamStateError, match="recorded already"), stream.record():
        pass
    with stream.record() as recording:
        run(streamed, X)
    assert len(of(recording.tracks(), PASSES)) == 1


def test_a_stream_may_be_closed_while_it_is_recorded() -> None:
    module = stream_tightly(Trap(), (X,), share=0.05)
    with penstock.inspect(module).record() as recording:
        run(module, X)
        penstock.restore(module)
    assert len(of(recording.tracks(), PASSES)) == 1


def test_a_recording_of_nothing_is_an_empty_trace(streamed: nn.Module, tmp_path: Path) -> None:
    with penstock.inspect(streamed).record() as recording:
        pass
    recording.save(tmp_path / "trace.json")
    assert not any(spans_of(json.loads((tmp_path / "trace.json").read_text())).values())


def test_what_is_beyond_the_limit_is_counted_and_told(streamed: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.runtime.events.MOST_EVENTS", 20)
    with penstock.inspect(streamed).record() as recording:
        run(streamed, X, passes=3)
    (remark,) = recording.to_chrome_trace()["otherData"]["remarks"]
    assert "were not kept" in remark
    spans_of(recording.to_chrome_trace())


def test_what_is_read_to_staging_memory_first_is_a_read_and_a_copy() -> None:
    log = EventLog({})
    log.plan_taken([NotedLoad("w", 4096, False)], [], 4096)
    for note in (log.read_begun, log.read_ended, log.place_taken, log.copy_begun, log.copy_ended, log.arrived):
        note(0)
    log.place_freed(0)
    tracks = recorded_tracks(log, "staged")
    (read,), (copied,) = of(tracks, STORAGE), of(tracks, COPY)
    assert read.name == copied.name == "w"
    at = [event.seconds - log.events[0].seconds for event in log.events]
    assert (read.begin_seconds, read.end_seconds) == (at[1], at[2])
    assert (copied.begin_seconds, copied.end_seconds) == (at[4], at[5])
    assert [each.streamed_nbytes for each in tracks.occupancy] == [0, 4096, 0]
    assert spans_of(Recording(log, "staged").to_chrome_trace())["copy"]


def test_a_layer_whose_end_was_cut_off_is_not_the_next_passs() -> None:
    layer = nn.Identity()
    log = EventLog({id(layer): "layer"})
    log.pass_begun()
    log.layer_begun(layer)
    log.pass_ended()
    log.pass_begun()
    log.rows_read(4096, perf_counter() - 0.5)
    log.pass_ended()
    tracks = recorded_tracks(log, "cut off")
    assert [span.name for span in of(tracks, STALLS)] == ["rows of a table"]
    assert "layer" not in {span.name for span in tracks.spans}


def test_what_is_in_the_arena_when_recording_begins_is_counted(streamed: nn.Module) -> None:
    run(streamed, X, passes=2)
    with penstock.inspect(streamed).record() as recording:
        pass
    plan = plan_of(streamed)
    last = recording.tracks().occupancy[-1]
    assert last.resident_nbytes > 0 or not plan.resident
    assert last.streamed_nbytes > 0


def test_the_prediction_of_the_plan_in_force_is_a_timeline(streamed: nn.Module) -> None:
    stream = penstock.inspect(streamed)
    tracks = stream.predicted()
    spans_of(tracks.to_chrome_trace())
    assert tracks.title.startswith("Trap within")
    assert tracks.arena_nbytes == stream.plan.arena_nbytes


def test_nothing_is_predicted_before_anything_is_planned() -> None:
    module = penstock.stream(Trap(), budget="64MiB")
    with pytest.raises(penstock.StreamStateError, match="nothing is planned"):
        penstock.inspect(module).predicted()
    penstock.restore(module)
