"""What is recorded of an iteration: storages, not tensors, and what could be away when."""

from __future__ import annotations

import torch

import penstock
from penstock.training.calls import Calls
from penstock.training.iteration import last_iteration
from penstock.training.tape import PARAMETERS, SAVED, STEP_ENDED, TAKEN, Event, Recorder, Tape

MIB = 1 << 20


def record(times: int = 3) -> Tape:
    """Iterations that save a square of 4 MiB early, and a sum of 1 KiB late."""
    recorder = Recorder()
    with recorder:
        for _ in range(times):
            recorder.event(Event(SAVED, 16))
            x = torch.ones(MIB)
            recorder.event(Event(SAVED, 4 * MIB), x.untyped_storage())
            y = x.view(1024, 1024)[:, 1:]  # no storage of its own
            z = y.sum(0)
            recorder.event(Event(SAVED, 4096), z.untyped_storage())
            w = torch.ones(MIB // 2)
            del w
            recorder.event(Event(TAKEN, 4096), z.untyped_storage())
            recorder.event(Event(TAKEN, 4 * MIB), x.untyped_storage())
            y.sum()
            del x, y, z
            recorder.event(Event(STEP_ENDED))
    return recorder.tape()


def test_views_share_their_storage() -> None:
    tape = record()
    large = [record for record in tape.storages if record.nbytes == 4 * MIB]
    assert len(large) == 3
    assert all(record.operation == "ones" for record in large)
    first = large[0]
    assert first.saves == [1]
    assert first.uses == [0, 1, 4]
    assert (first.born, first.died) == (0, 4)


def test_the_peak_of_each_segment_counts_what_is_live() -> None:
    tape = record()
    peaks = [round(peak / MIB) for peak in tape.peak_nbytes]
    assert peaks[6:11] == [4, 4, 6, 4, 4]
    assert len(tape.events) == len(tape.seconds) == len(tape.peak_nbytes) == 18


def test_only_large_saved_storages_with_a_gap_could_be_away() -> None:
    iteration = last_iteration(record(), 6)
    (absence,) = iteration.absences
    assert (absence.storage, absence.nbytes, absence.leaves, absence.returns) == (1, 4 * MIB, 2, 4)
    assert iteration.until[1] == 5
    assert iteration.lasting_nbytes == 0


def test_what_outlives_iterations_lasts() -> None:
    recorder = Recorder()
    kept = torch.ones(1000)
    recorder.know([(PARAMETERS, kept)])
    with recorder:
        for _ in range(4):
            x = kept * 2
            recorder.event(Event(SAVED, 4000), x.untyped_storage())
            recorder.event(Event(STEP_ENDED))
    assert last_iteration(recorder.tape(), 2).lasting_nbytes in (4000, 8000)  # and what the last one has left


def test_sparse_and_meta_tensors_have_no_storage_here() -> None:
    recorder = Recorder()
    with recorder:
        torch.ones(3, 3).to_sparse().sum()
        torch.ones(3, device="meta") + 1
    assert all(record.nbytes <= 72 for record in recorder.tape().storages)


def test_storages_are_told_apart_by_what_they_are_for() -> None:
    model = torch.nn.Linear(1024, 1024)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with penstock.autoswap(model, optimizer, budget="1GiB") as swap:
        for _ in range(7):
            optimizer.zero_grad()
            model(torch.randn(2048, 1024)).tanh().sum().backward()
            optimizer.step()
    assert swap.iteration is not None
    kinds = {kind: round(nbytes / MIB) for kind, nbytes in swap.iteration.kinds.items()}
    assert kinds["parameters"] == 4
    assert kinds["optimizer state"] == 4
    assert kinds["saved activations"] >= 8
    assert sum(swap.iteration.kinds.values()) >= max(swap.iteration.peak_nbytes)
    assert "saved activations" in swap.explain()


def test_a_weight_is_touched_before_its_function_saves_anything() -> None:
    """Because the function makes the node for its gradient first."""
    weight, x = torch.nn.Parameter(torch.randn(4, 4, 3, 3)), torch.randn(2, 4, 8, 8)
    recorder = Recorder()
    recorder.know([(PARAMETERS, weight)])

    def save(tensor: torch.Tensor) -> torch.Tensor:
        recorder.event(Event(SAVED, tensor.nbytes), tensor.untyped_storage())
        return tensor.detach()

    with (
        recorder,
        Calls(recorder.called, recorder.seen),
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
    ):
        torch.nn.functional.relu(x)
        recorder.event(Event(SAVED, 0))
        recorder.event(Event(SAVED, 0))
        torch.nn.functional.conv2d(x, weight)
        assert weight.grad is None  # looking at a property is no use
    (record,) = [record for record in recorder.tape().storages if record.known_as == PARAMETERS]
    assert record.calls == [1]
    assert record.touches == [1, 3]  # two were saved before it computed
