"""What is lent is empty: a place is given back only when nothing holds it and nothing is on its way there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from penstock.checkpoint import FileIdentity, Piece, WeightSource
from penstock.runtime.devices.cpu import CpuDevice
from penstock.runtime.loads import PlannedLoad
from penstock.runtime.pipeline import ABSENT, READY, Pipeline
from penstock.runtime.storage import FileStorage
from penstock.runtime.tide import Tide

from ..adversary import AdversarialDevice  # noqa: TID252

BLOCK = 4096
CONTENT = bytes((i // BLOCK * 31 + i) % 251 for i in range(4 * BLOCK))
EBB = 2


def load(block: int) -> PlannedLoad:
    """Block `block` of the file to the same block of the arena."""
    source = WeightSource("uint8", (BLOCK,), (Piece(0, block * BLOCK, BLOCK, 0),))
    return PlannedLoad(source, block * BLOCK, block * BLOCK, (block + 1) * BLOCK, False)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """Two loads, and an ebb over the second one's place and the block behind it."""
    (tmp_path / "weights").write_bytes(CONTENT)
    device = CpuDevice()
    loads = [load(0), load(1), PlannedLoad.ebb(BLOCK, 2 * BLOCK)]
    storage = FileStorage([FileIdentity.of(tmp_path / "weights")])
    opened = Pipeline(device, device.allocate(4 * BLOCK), storage, loads)
    yield opened
    opened.close()


def filled(pipeline: Pipeline) -> torch.Tensor:
    return pipeline.arena.tensor(0, torch.uint8, (4 * BLOCK,)).fill_(1)


def test_what_is_lent_is_not_in_memory_and_what_is_around_it_is(pipeline: Pipeline) -> None:
    content, tide = filled(pipeline), Tide(pipeline)
    before = pipeline.arena.resident_nbytes()
    tide.turn((EBB,))
    assert pipeline.arena.resident_nbytes() == before - 2 * BLOCK
    assert bool(content[:BLOCK].all() and content[3 * BLOCK :].all())
    assert tide.out == (EBB,)


def test_a_load_comes_only_when_its_place_is_lent_no_more(pipeline: Pipeline) -> None:
    tide = Tide(pipeline)
    tide.turn((EBB,))
    pipeline.start([0, 1], [])
    pipeline.hold(0)
    assert pipeline.states[1] == ABSENT
    tide.turn(())
    pipeline.hold(1)
    found = pipeline.arena.tensor(BLOCK, torch.uint8, (BLOCK,))
    assert bytes(found.tolist()) == CONTENT[BLOCK : 2 * BLOCK]
    assert pipeline.stats.demand_loads == 0


def test_what_was_loaded_too_early_goes_and_comes_again(pipeline: Pipeline) -> None:
    tide = Tide(pipeline)
    pipeline.start([0, 1], [])
    pipeline.hold(1)
    pipeline.release(1, keep=True)
    tide.turn((EBB,))
    assert tide.out == (EBB,)
    assert (pipeline.states[1], pipeline.states[EBB]) == (ABSENT, READY)
    tide.turn(())
    pipeline.hold(1)
    assert bytes(pipeline.arena.tensor(BLOCK, torch.uint8, (BLOCK,)).tolist()) == CONTENT[BLOCK : 2 * BLOCK]


def test_a_place_that_a_layer_has_is_not_lent(pipeline: Pipeline) -> None:
    tide = Tide(pipeline)
    pipeline.start([1], [])
    pipeline.hold(1)
    tide.turn((EBB,))
    assert tide.out == ()
    assert bytes(pipeline.arena.tensor(BLOCK, torch.uint8, (BLOCK,)).tolist()) == CONTENT[BLOCK : 2 * BLOCK]
    pipeline.release(1)
    tide.turn((EBB,))
    assert tide.out == (EBB,)


def test_what_stays_lent_over_calls_is_given_back_once(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(CONTENT)
    device = AdversarialDevice()
    loads = [PlannedLoad.ebb(0, BLOCK), PlannedLoad.ebb(BLOCK, BLOCK)]
    storage = FileStorage([FileIdentity.of(tmp_path / "weights")])
    pipeline = Pipeline(device, device.allocate(2 * BLOCK), storage, loads)
    tide = Tide(pipeline)
    for ebbs in ((0,), (0,), (0, 1), (1,), ()):
        tide.turn(ebbs)
        assert set(tide.out) == set(ebbs)
    assert device.given_back_nbytes == 2 * BLOCK
    pipeline.close()


def test_after_an_interrupt_everything_can_be_lent_again(pipeline: Pipeline) -> None:
    tide = Tide(pipeline)
    tide.turn((EBB,))
    pipeline.recover()
    pipeline.held[EBB] = 0
    tide.forget()
    pipeline.start([0, 1], [])
    pipeline.hold(1)
    pipeline.release(1)
    before = filled(pipeline)
    tide.turn((EBB,))
    assert not bool(before[BLOCK : 3 * BLOCK].any()), "nothing was given back"
