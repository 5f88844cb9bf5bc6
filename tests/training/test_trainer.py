"""transformers' Trainer within a budget: the same to the last bit, whatever it does beside training."""

from __future__ import annotations

import contextlib
import importlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from penstock.errors import (
    BudgetError,
    BudgetInfeasibleError,
    PlanError,
    StorageError,
    StreamStateError,
    UnsupportedModelError,
)
from penstock.training.autoswap import AutoSwap

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate, which is not installed")
trainer_module = importlib.import_module("penstock.training.trainer")
AutoSwapCallback = trainer_module.AutoSwapCallback

MIB = 1 << 20
BUDGET = 14 * MIB  # of 24
WORDS, LENGTH, WIDTH, BATCH = 8192, 640, 64, 8  # a table of 2 MiB, and activations of 1.25 MiB, of 7 of 1.1 MiB

pytestmark = pytest.mark.usefixtures("steady")


@pytest.fixture(autouse=True)
def _one_compute_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of operations this small where others compute, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Reader(nn.Module):
    """Reads words and tells a number; `fails` is called with how often it read in training."""

    def __init__(self, fails: Callable[[int], None] = lambda count: None) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.dropout = nn.Dropout(0.1)
        self._fails, self._count = fails, 0

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.table(input_ids)
        for layer in self.layers:
            y = self.dropout(nn.functional.gelu(layer(y))) + y
        self._count += self.training
        self._fails(self._count)
        told = y.mean((1, 2))
        return {"loss": 1000 * (told - labels).square().mean(), "logits": told}


def samples(count: int) -> list[dict[str, torch.Tensor]]:
    chance = torch.Generator().manual_seed(3)
    ids = torch.randint(WORDS, (count, LENGTH), generator=chance)
    return [{"input_ids": one, "labels": one.float().mean() / WORDS} for one in ids]


def make(
    folder: Path, *callbacks: Any, fails: Callable[[int], None] = lambda count: None, count: int = 96, **more: Any
) -> Any:
    """A Trainer of a reader, for an epoch of 12 steps."""
    transformers.set_seed(0)  # of the weights
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    arguments = transformers.TrainingArguments(**{**settings, **more})
    data, few = samples(count), samples(5)
    return transformers.Trainer(
        Reader(fails), arguments, train_dataset=data, eval_dataset=few, callbacks=list(callbacks)
    )


def train(trainer: Any, **more: Any) -> Any:
    """Have it train; what chance decides does not depend on who trained before."""
    transformers.set_seed(1)
    trainer.train(**more)
    return trainer


def told(trainer: Any) -> list[dict[str, float]]:
    """What it logged, but times."""
    logs, times = trainer.state.log_history, ("runtime", "per_second")
    return [{key: value for key, value in entry.items() if not key.endswith(times)} for entry in logs]


def same(first: Any, second: Any) -> bool:
    """Whether parts of two states are the same to the last bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def alike(first: Any, second: Any) -> bool:
    """Whether two Trainers have the same weights and optimizer state."""
    weights = same(first.model.state_dict(), second.model.state_dict())
    return weights and same(first.optimizer.state_dict(), second.optimizer.state_dict())


def state_leaves(swap: AutoSwap) -> bool:
    """Whether optimizer state is among what leaves: its numbers follow those of events."""
    assert swap.plan is not None
    assert swap.iteration is not None
    return any(one.storage >= len(swap.iteration.events) for one in swap.plan.swaps)


def is_active() -> bool:
    """Whether anything sees what autograd saves."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def both(tmp_path: Path, *, parameters: bool = False, **more: Any) -> AutoSwap:
    """Train plainly and within the budget, compare, and tell what happened."""
    plain = train(make(tmp_path / "plain", **more))
    callback = AutoSwapCallback(BUDGET, tmp_path, parameters=parameters)
    within = train(make(tmp_path / "within", callback, **more))
    assert told(within) == told(plain)
    assert alike(within, plain)
    assert not is_active()
    swap: AutoSwap = callback.swap
    assert swap.plan is not None
    assert swap.plan.peak_nbytes <= BUDGET < swap.plan.full_peak_nbytes
    assert state_leaves(swap)
    return swap


# -- the same to the last bit --


def test_clipping_and_short_last_batches(tmp_path: Path) -> None:
    swap = both(tmp_path, count=44, num_train_epochs=2)
    assert swap.stats.iterations >= 5
    assert swap.stats.departed == 2
    assert "leave memory" in swap.explain()


def test_accumulated_gradients_and_fewer_of_them_in_the_last_step(tmp_path: Path) -> None:
    swap = both(tmp_path, count=132, gradient_accumulation_steps=2)
    assert swap.stats.iterations >= 3
    assert swap.stats.departed == 1


@pytest.mark.parametrize("parameters", [False, True])
def test_evaluation_and_checkpoints_in_between_and_the_best_at_the_end(tmp_path: Path, parameters: bool) -> None:
    often = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    swap = both(tmp_path, load_best_model_at_end=True, parameters=parameters, **often)
    assert swap.stats.iterations >= 5
    assert swap.stats.departed == 0


def test_a_checkpoint_of_the_middle_has_everything_and_is_resumed_from(tmp_path: Path) -> None:
    plain = train(make(tmp_path / "plain", save_strategy="steps", save_steps=4))
    train(make(tmp_path / "within", AutoSwapCallback(BUDGET), save_strategy="steps", save_steps=4))
    for name in ("optimizer.pt", "scheduler.pt"):
        expected, found = (torch.load(tmp_path / one / "checkpoint-4" / name) for one in ("plain", "within"))
        assert same(expected, found)
    callback = AutoSwapCallback(BUDGET)
    checkpoint = str(tmp_path / "within" / "checkpoint-4")
    resumed = train(make(tmp_path / "resumed", callback), resume_from_checkpoint=checkpoint)
    assert alike(resumed, plain)
    assert callback.swap.stats.iterations >= 3
    assert state_leaves(callback.swap)


def test_a_transformers_model(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=256, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    ids = torch.randint(64, (64, 256), generator=torch.Generator().manual_seed(0))
    words = [{"input_ids": one, "labels": one} for one in ids]

    def trained(*callbacks: Any) -> Any:
        arguments = make(tmp_path).args
        model = transformers.GPT2LMHeadModel(config)
        return train(transformers.Trainer(model, arguments, train_dataset=words, callbacks=list(callbacks)))

    callback = AutoSwapCallback("60MiB")
    assert alike(trained(callback), trained())
    assert callback.swap.plan is not None
    assert callback.swap.plan.swaps
    assert callback.swap.stats.iterations >= 3


def test_training_goes_on_with_another_call(tmp_path: Path) -> None:
    plain, callback = make(tmp_path), AutoSwapCallback(BUDGET)
    within = make(tmp_path, callback)
    swaps = []
    for _ in range(2):
        train(plain)
        train(within)
        swaps.append(callback.swap)
    assert alike(within, plain)
    assert swaps[0] is not swaps[1]
    assert all(swap.stats.iterations >= 8 for swap in swaps)


# -- training that ends by an exception --


def failing(at: int, error: BaseException) -> Callable[[int], None]:
    """Raises once, in the forward pass of this number."""

    def fails(count: int) -> None:
        if count == at:
            raise error

    return fails


def interrupted(tmp_path: Path, *callbacks: Any) -> Any:
    trainer = make(tmp_path, *callbacks, fails=failing(8, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    return trainer


def test_close_ends_what_an_exception_left(tmp_path: Path) -> None:
    callback = AutoSwapCallback(BUDGET, tmp_path)
    within, plain = interrupted(tmp_path, callback), interrupted(tmp_path)
    assert state_leaves(callback.swap)
    assert is_active()
    for _ in range(2):
        callback.close()
        assert not is_active()
    assert same(*(list(trainer.optimizer.state.values()) for trainer in (within, plain)))
    assert alike(within, plain)
    assert alike(train(within), train(plain))
    model = nn.Linear(2, 2)
    with penstock.autoswap(model, torch.optim.SGD(model.parameters()), budget=BUDGET):
        callback.close()  # it is not its block
        assert is_active()


def test_the_same_callback_ends_it_when_training_begins_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = AutoSwapCallback(BUDGET)
    within, plain = interrupted(tmp_path, callback), interrupted(tmp_path)
    first = callback.swap
    assert alike(train(within), train(plain))
    assert callback.swap is not first
    assert callback.swap.stats.iterations >= 8
    assert not is_active()
    assert "another" not in caplog.text


def test_another_callback_ends_it_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BudgetInfeasibleError) as caught:
        make(tmp_path, AutoSwapCallback(MIB)).train()
    assert is_active()
    with caplog.at_level(logging.WARNING, logger="penstock"):
        callback = AutoSwapCallback(caught.value.needed_nbytes)
        within = train(make(tmp_path, callback))
    assert "another AutoSwapCallback has not ended" in caplog.text
    assert not is_active()
    assert callback.swap.stats.iterations >= 5
    assert alike(within, train(make(tmp_path)))


def test_a_smaller_batch_is_tried_where_memory_is_short(tmp_path: Path) -> None:
    def trained(*callbacks: Any) -> Any:
        full = RuntimeError("DefaultCPUAllocator: can't allocate memory")
        trainer = train(make(tmp_path, *callbacks, fails=failing(8, full), auto_find_batch_size=True))
        assert trainer._train_batch_size < BATCH
        return trainer

    callback = AutoSwapCallback(BUDGET)
    assert alike(trained(callback), trained())
    assert callback.swap.plan is not None
    assert callback.swap.plan.swaps
    assert callback.swap.stats.iterations >= 8
    assert not is_active()


# -- what is refused --


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        AutoSwapCallback("lots")
    callback = AutoSwapCallback(BUDGET, scores="luck")
    with pytest.raises(StreamStateError, match="no training"):
        _ = callback.swap
    with pytest.raises(PlanError, match="luck"):
        make(tmp_path, callback).train()
    assert not is_active()


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    callback = AutoSwapCallback(BUDGET, tmp_path / "missing")
    with contextlib.closing(callback), pytest.raises(StorageError, match="missing"):
        train(make(tmp_path, callback))
    assert not is_active()


def test_a_model_elsewhere_than_on_the_cpu_is_refused() -> None:
    model = nn.Linear(2, 2, device="meta")
    with pytest.raises(UnsupportedModelError, match="use_cpu"):
        AutoSwapCallback(BUDGET).on_train_begin(None, None, None, model=model, optimizer=None)


def test_training_within_a_block_of_the_users_own_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    callback = AutoSwapCallback(BUDGET)
    with penstock.autoswap(model, torch.optim.SGD(model.parameters()), budget=BUDGET):
        with pytest.raises(StreamStateError, match="nested"):
            make(tmp_path, callback).train()
        callback.close()  # there is nothing to end
        assert is_active()
    assert not is_active()


# -- an optional dependency --


def test_penstock_does_not_import_transformers() -> None:
    program = "import sys, penstock; sys.exit(any(name in sys.modules for name in ('transformers', 'accelerate')))"
    assert subprocess.run([sys.executable, "-c", program], timeout=100).returncode == 0


@pytest.mark.parametrize("missing", ["transformers", "accelerate.optimizer"])
def test_without_transformers_or_accelerate_it_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "penstock.training.trainer")
    with pytest.raises(ImportError, match=rf"{missing}.*penstock\[trainer\]'"):
        importlib.import_module("penstock.training.trainer")
