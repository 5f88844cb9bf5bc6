"""What people and machines get wrong: a clear Penstock error, nothing lost, nothing left behind."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import penstock
from penstock.errors import (
    BudgetError,
    BudgetInfeasibleError,
    CheckpointError,
    CheckpointMismatchError,
    StorageError,
    StreamStateError,
    UnsupportedModelError,
)
from penstock.runtime.storage import FileStorage

from .streaming import WIDTH, counted_memory, equal, needed_nbytes, weight_nbytes
from .zoo import Block, Tied, X, tokens

__all__ = ["counted_memory"]
pytestmark = pytest.mark.usefixtures("counted_memory")


class Chain(nn.Module):
    """Blocks in a row, with something that may happen between the second and the third."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.between: Callable[[], None] = lambda: None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 1:
                self.between()
        return self.norm(x)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return Chain().eval()


@pytest.fixture
def expected(module: nn.Module) -> torch.Tensor:
    return run(module)


@pytest.fixture
def checkpoint(module: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "weights" / "model.safetensors"
    path.parent.mkdir()
    save_file(module.state_dict(), path)
    return path


@pytest.fixture
def budget(module: nn.Module) -> int:
    """Enough to run, and to keep about a third of the weights."""
    return needed_nbytes(module, (X,)) + weight_nbytes(module) // 3


def run(module: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return module(X)


def is_untouched(module: nn.Module) -> bool:
    """Whether nothing of Penstock is on it, and its weights are in memory."""
    plain = all(type(m._parameters) is dict and "forward" not in vars(m) for m in module.modules())
    return plain and not any(p.is_meta for p in module.parameters()) and not hasattr(module, "_penstock_stream")


@pytest.fixture
def spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders go; empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert not list(folder.glob("penstock-*"))


# -- budgets --


@pytest.mark.parametrize("nonsense", [0, -5, "0MiB", "-3GB", "much", "12 parsecs", "", 1.5, None, True, float("nan")])
def test_a_budget_that_is_no_size_is_refused_and_the_module_is_untouched(nonsense: Any, module: nn.Module) -> None:
    with pytest.raises(BudgetError, match="512MiB"):
        penstock.stream(module, budget=nonsense)
    assert is_untouched(module)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_budget_too_small_names_one_that_works(
    has_checkpoint: bool, module: nn.Module, expected: torch.Tensor, checkpoint: Path, spills: Path
) -> None:
    source = checkpoint if has_checkpoint else None
    with pytest.raises(BudgetInfeasibleError, match="give at least") as caught:
        penstock.stream(module, source, budget="10KiB", example=X)
    assert is_untouched(module)
    assert equal(run(module), expected)
    penstock.stream(module, source, budget=caught.value.needed_nbytes, example=X)
    assert equal(run(module), expected)
    penstock.restore(module)
    with pytest.raises(BudgetInfeasibleError):
        penstock.stream(module, source, budget=caught.value.needed_nbytes - 1, example=X)
    assert is_untouched(module)


def test_a_budget_too_small_for_the_first_call_is_refused_by_it(module: nn.Module, expected: torch.Tensor) -> None:
    penstock.stream(module, budget="10KiB")
    with pytest.raises(BudgetInfeasibleError) as caught:
        run(module)
    penstock.inspect(module).budget = caught.value.needed_nbytes
    assert equal(run(module), expected)
    penstock.restore(module)


def test_streaming_again_with_a_budget_too_small_leaves_the_stream_as_it_was(
    module: nn.Module, expected: torch.Tensor, budget: int, checkpoint: Path, spills: Path
) -> None:
    penstock.stream(module, budget=budget, example=X)
    for again in (None, checkpoint):
        with pytest.raises(BudgetInfeasibleError):
            penstock.stream(module, again, budget="10KiB", example=X)
        assert penstock.inspect(module).budget.nbytes == budget
        assert equal(run(module), expected)
    penstock.restore(module)


def test_a_call_that_needs_more_than_the_budget_is_refused_and_smaller_ones_go_on(
    module: nn.Module, expected: torch.Tensor, budget: int
) -> None:
    penstock.stream(module, budget=budget, example=X)
    with torch.inference_mode(), pytest.raises(BudgetInfeasibleError):
        module(torch.zeros(20_000, WIDTH))
    assert equal(run(module), expected)
    penstock.restore(module)


# -- checkpoints --


def replace_with(content: bytes) -> Callable[[Path], Path]:
    def damage(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return damage


def truncate(path: Path) -> Path:
    os.truncate(path, path.stat().st_size - 1000)
    return path


def leave_a_pickle(path: Path) -> Path:
    torch.save({"a": torch.zeros(2)}, path.parent / "pytorch_model.bin")
    path.unlink()
    return path.parent


DAMAGES: dict[str, Callable[[Path], Path]] = {
    "missing": lambda path: path.with_name("nowhere.safetensors"),
    "missing folder": lambda path: path.parent / "nowhere",
    "empty": replace_with(b""),
    "garbage": replace_with(os.urandom(5000)),
    "a text": replace_with(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
    "truncated": truncate,
    "pickle in a folder": leave_a_pickle,
    "pickle": lambda path: leave_a_pickle(path) / "pytorch_model.bin",
    "empty folder": lambda path: path.unlink() or path.parent,  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_module_is_untouched(
    damage: str, module: nn.Module, expected: torch.Tensor, checkpoint: Path
) -> None:
    path = DAMAGES[damage](checkpoint)
    with pytest.raises(CheckpointError) as caught:
        penstock.stream(module, path, budget="64MiB", example=X)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert is_untouched(module)
    assert equal(run(module), expected)


def test_a_pickle_is_refused_with_what_to_do(module: nn.Module, checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"safetensors"):
        penstock.stream(module, leave_a_pickle(checkpoint) / "pytorch_model.bin", budget="64MiB")


def without(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


MISMATCHES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "missing key": (without("blocks.2.first.weight"), "blocks.2.first.weight"),
    "unexpected key": (lambda state: {**state, "surplus": torch.zeros(3)}, "surplus"),
    "other shape": (lambda state: {**state, "blocks.0.first.weight": torch.zeros(3, 4)}, "blocks.0.first.weight"),
    "other dtype": (
        lambda state: {**state, "blocks.0.first.weight": state["blocks.0.first.weight"].half()},
        "blocks.0.first.weight",
    ),
    "another model's": (lambda state: {f"other.{key}": value for key, value in state.items()}, "other.blocks"),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_a_checkpoint_of_another_module_is_refused_and_named(
    mismatch: str, module: nn.Module, expected: torch.Tensor, tmp_path: Path
) -> None:
    change, named = MISMATCHES[mismatch]
    save_file(change(module.state_dict()), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointMismatchError, match=named):
        penstock.stream(module, tmp_path / "other.safetensors", budget="64MiB", example=X)
    assert is_untouched(module)
    assert equal(run(module), expected)


def rewrite(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Path], None]] = {
    "replaced": rewrite,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("when", ["between passes", "during a pass"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_changes_is_noticed_and_its_return_heals(
    change: str, when: str, module: Any, expected: torch.Tensor, budget: int, checkpoint: Path
) -> None:
    penstock.stream(module, checkpoint, budget=budget, example=X)
    assert equal(run(module), expected)
    kept = checkpoint.with_name("kept")
    shutil.copy2(checkpoint, kept)
    status = checkpoint.stat()
    original = checkpoint.with_name("original")
    os.link(checkpoint, original)
    if when == "between passes":
        CHANGES[change](checkpoint)
    else:
        module.between = lambda: CHANGES[change](checkpoint) if checkpoint.exists() else None
    with pytest.raises((CheckpointError, StorageError), match=r"model\.safetensors"):
        run(module)
    module.between = lambda: None
    with pytest.raises((CheckpointError, StorageError)):
        run(module)
    with pytest.raises((CheckpointError, StorageError)):
        penstock.restore(module)
    # The very file that was opened comes back, its content and times as they were.
    original.write_bytes(kept.read_bytes())
    original.replace(checkpoint) if not checkpoint.exists() or not checkpoint.samefile(original) else original.unlink()
    os.utime(checkpoint, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert equal(run(module), expected)
    penstock.restore(module)
    assert is_untouched(module)


def test_a_new_checkpoint_can_be_streamed_in_the_place_of_a_lost_one(
    module: nn.Module, expected: torch.Tensor, budget: int, checkpoint: Path
) -> None:
    other = checkpoint.with_name("other.safetensors")
    shutil.copy(checkpoint, other)
    penstock.stream(module, checkpoint, budget=budget, example=X)
    checkpoint.unlink()
    with pytest.raises(CheckpointError):
        run(module)
    penstock.stream(module, other, budget=budget, example=X)
    assert equal(run(module), expected)
    penstock.restore(module)


# -- reads that fail --


class Failing:
    """`FileStorage.read` that fails every `nth` time."""

    def __init__(self, nth: int, error: BaseException) -> None:
        self.nth, self.error, self.count = nth, error, 0
        self.real = FileStorage.read
        self.is_on = True
        self._lock = threading.Lock()

    def __call__(self, storage: FileStorage, *args: Any) -> None:
        with self._lock:
            self.count += 1
            fails = self.is_on and self.count % self.nth == 0
        if fails:
            raise self.error
        self.real(storage, *args)


@pytest.mark.parametrize("error", [StorageError("injected"), OSError(5, "I/O error"), MemoryError()], ids=repr)
@pytest.mark.parametrize("nth", [1, 2, 7])
def test_a_failed_read_reaches_the_caller_and_the_next_pass_is_right(
    nth: int,
    error: BaseException,
    module: nn.Module,
    expected: torch.Tensor,
    budget: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    penstock.stream(module, budget=budget, example=X)
    run(module)
    failing = Failing(nth, error)
    monkeypatch.setattr(FileStorage, "read", lambda *args: failing(*args))
    caught = []
    for _ in range(4):
        try:
            assert equal(run(module), expected)
        except StorageError as raised:
            caught.append(raised)
    failing.is_on = False
    assert caught
    assert equal(run(module), expected)
    penstock.restore(module)


def test_a_short_read_is_an_error_not_a_wrong_result(
    module: nn.Module, expected: torch.Tensor, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    penstock.stream(module, budget=budget, example=X)
    run(module)
    real = os.preadv
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda *args: real(*args) // 2 + 1)
        with pytest.raises(StorageError, match="file ends"):
            run(module)
    assert equal(run(module), expected)
    penstock.restore(module)


def test_rows_that_cannot_be_read_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = Tied()
    module.head = nn.Linear(WIDTH, 200)
    with torch.inference_mode():
        expected = module(tokens(1))
        penstock.stream(module, budget=needed_nbytes(module, (tokens(1),)), example=tokens(1))
        assert equal(module(tokens(1)), expected)
        assert penstock.inspect(module).plan.rows
        failing = Failing(1, OSError(5, "I/O error"))
        with monkeypatch.context() as patch:
            patch.setattr(FileStorage, "read", lambda *args: failing(*args))
            with pytest.raises((StorageError, OSError)):
                module(tokens(1))
        assert equal(module(tokens(1)), expected)
        with pytest.raises(IndexError):
            module(tokens(1) + 1000)
        assert equal(module(tokens(1)), expected)
    penstock.restore(module)


# -- uses that streaming does not allow --


def test_gradients_are_refused_with_the_way_out(module: nn.Module, expected: torch.Tensor, budget: int) -> None:
    penstock.stream(module, budget=budget, example=X)
    with pytest.raises(UnsupportedModelError, match="inference_mode"):
        module(X)
    with pytest.raises(UnsupportedModelError, match="inference_mode"):
        module.blocks[0](X)
    module.requires_grad_(False)
    assert equal(module(X), expected)
    with pytest.raises(UnsupportedModelError, match="inference_mode"):
        module(X.clone().requires_grad_())  # what is saved for a backward pass would be overwritten
    assert equal(run(module), expected)
    penstock.restore(module)
    module.requires_grad_(True)
    module(X).sum().backward()


REFUSED: dict[str, Callable[[Any], Any]] = {
    "to a dtype": lambda m: m.to(torch.float16),
    "half": lambda m: m.half(),
    "a part to a dtype": lambda m: m.blocks.double(),
    "deep copy": copy.deepcopy,
    "deep copy of a part": lambda m: copy.deepcopy(m.blocks),
    "pickle": pickle.dumps,
    "load": lambda m: m.load_state_dict({}),
    "load into a part": lambda m: m.blocks[0].load_state_dict(m.blocks[0].state_dict()),
    "share": lambda m: m.share_memory(),
    "to_empty": lambda m: m.to_empty(device="cpu"),
}


@pytest.mark.parametrize("use", REFUSED)
def test_what_would_touch_absent_weights_is_refused_and_works_after_restore(
    use: str, module: nn.Module, expected: torch.Tensor, budget: int
) -> None:
    penstock.stream(module, budget=budget, example=X)
    with pytest.raises(StreamStateError, match=r"penstock\.restore"):
        REFUSED[use](module)
    assert equal(run(module), expected)
    penstock.restore(module)
    assert is_untouched(module)
    assert equal(run(module), expected)
    copied = copy.deepcopy(module)
    copied.load_state_dict(module.state_dict())
    assert equal(run(copied.half().float().to(torch.float32)), run(copied))


def test_saving_a_streamed_module_whole_is_refused(module: nn.Module, budget: int, tmp_path: Path) -> None:
    penstock.stream(module, budget=budget, example=X)
    with pytest.raises(StreamStateError, match="pickled"):
        torch.save(module, tmp_path / "whole.pt")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    penstock.restore(module)


@pytest.mark.parametrize("thing", [None, 3, "model", lambda x: x, nn.Module])
def test_what_is_no_module_is_refused(thing: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"torch\.nn\.Module"):
        penstock.stream(thing, budget="1MiB")


def test_a_module_without_weights_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no weights"):
        penstock.stream(nn.ReLU(), budget="1MiB")


def test_other_devices_are_refused(module: nn.Module) -> None:
    for device in ("cuda", "meta", "nonsense"):
        with pytest.raises(UnsupportedModelError, match=device):
            penstock.stream(module, budget="1MiB", device=device)
    assert is_untouched(module)


def test_an_unknown_strategy_is_refused(module: nn.Module, expected: torch.Tensor) -> None:
    with pytest.raises(penstock.PlanError, match="optimal"):
        penstock.stream(module, budget="64MiB", strategy="best")
    assert is_untouched(module)
    assert equal(run(module), expected)


def test_a_skeleton_without_its_checkpoint_is_refused() -> None:
    with torch.device("meta"):
        skeleton = Chain()
    with pytest.raises(UnsupportedModelError, match="checkpoint"):
        penstock.stream(skeleton, budget="64MiB")


def test_a_skeleton_whose_buffers_nothing_holds_is_refused(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("scale", torch.ones(3), persistent=False)

    save_file(Scaled().state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        skeleton = Scaled()
    with pytest.raises(UnsupportedModelError, match="scale"):
        penstock.stream(skeleton, tmp_path / "model.safetensors", budget="64MiB")


def test_a_weight_that_the_pass_writes_to_is_refused() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.weight = Block(), nn.Parameter(torch.randn(WIDTH, WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.weight.data.clamp_(-1, 1)
            return self.block(x @ self.weight)

    module = Clamped()
    with pytest.raises(UnsupportedModelError, match="weight"):
        penstock.stream(module, budget="64MiB", example=X)
    assert is_untouched(module)


def test_nothing_is_asked_of_a_plain_module(module: nn.Module) -> None:
    for call in (penstock.restore, penstock.inspect):
        with pytest.raises(StreamStateError, match="not streamed"):
            call(module)


# -- the process around it --


def in_fork(work: Callable[[], int]) -> int:
    """The exit code of a forked child that does `work`; killed if it hangs."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            signal.alarm(30)
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_so_and_the_parent_goes_on(
    module: nn.Module, expected: torch.Tensor, budget: int
) -> None:
    penstock.stream(module, budget=budget, example=X)
    folder = penstock.inspect(module).owned_folder

    def call_it() -> int:
        torch.set_num_threads(1)
        try:
            run(module)
        except StreamStateError as error:
            return 0 if "fork" in str(error) else 1
        return 2

    def let_it_go() -> int:
        penstock.inspect(module).close()
        return 0

    assert in_fork(call_it) == 0
    assert in_fork(let_it_go) == 0
    assert folder is not None
    assert folder.exists()
    assert equal(run(module), expected)
    penstock.restore(module)
    assert not folder.exists()


def limited_to(nbytes: int) -> Callable[[], None]:
    def restore_limits() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    return restore_limits


def test_a_full_disk_while_weights_are_written_leaves_the_module_as_it_was(
    module: nn.Module, expected: torch.Tensor, spills: Path
) -> None:
    undo = limited_to(200_000)
    try:
        with pytest.raises(StorageError, match="offload_folder"):
            penstock.stream(module, budget="64MiB")
    finally:
        undo()
    assert is_untouched(module)
    assert equal(run(module), expected)


def test_an_offload_folder_that_cannot_be_written_is_refused(module: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="offload_folder"):
        penstock.stream(module, budget="64MiB", offload_folder=tmp_path / "file")
    assert is_untouched(module)


def test_weights_written_to_an_offload_folder_go_with_the_stream(
    module: nn.Module, expected: torch.Tensor, tmp_path: Path
) -> None:
    penstock.stream(module, budget="64MiB", offload_folder=tmp_path / "offload")
    assert equal(run(module), expected)
    penstock.restore(module)
    assert not list((tmp_path / "offload").iterdir())


def test_a_cache_folder_that_cannot_be_written_costs_nothing_but_time(
    module: nn.Module, expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    penstock.stream(module, budget="64MiB", example=X)
    assert equal(run(module), expected)
    penstock.restore(module)


def test_damaged_traces_and_plans_in_the_cache_are_not_believed(
    module: nn.Module, expected: torch.Tensor, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    penstock.stream(module, checkpoint, budget="64MiB", example=X)
    run(module)
    penstock.restore(module)
    kept = [path for path in (tmp_path / "cache").rglob("*.json") if path.parent.parent.name != "storage"]
    assert kept
    for content in (b"", b"{}", b'{"version": 1, "calls": [{}]}', os.urandom(300)):
        for path in kept:
            path.write_bytes(content)
        penstock.stream(module, checkpoint, budget="64MiB", example=X)
        assert equal(run(module), expected)
        penstock.restore(module)


SCRIPT = """
import torch, penstock
from torch import nn
module = nn.Sequential(*[nn.Linear(160, 160) for _ in range(6)])
penstock.stream(module, budget="4MiB", example=torch.zeros(1, 160), offload_folder="{folder}")
with torch.inference_mode():
    module(torch.zeros(1, 160))
{end}
"""


@pytest.mark.parametrize("end", ["", "del module", "raise SystemExit(0)", "import sys; sys.exit()"])
def test_a_process_that_ends_without_restore_ends_cleanly(end: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT.format(folder=tmp_path / "offload", end=end)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert not list((tmp_path / "offload").iterdir())


FORK = """
import os
pid = os.fork()
if pid == 0:
    raise SystemExit(0)  # with everything that an interpreter does at its end
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
with torch.inference_mode():
    module(torch.zeros(1, 160))
    module(torch.zeros(1, 160))
penstock.restore(module)
"""


def test_a_forked_child_that_ends_leaves_its_parents_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(folder=tmp_path / "offload", end=FORK)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_dropped_takes_threads_and_files_with_it(tmp_path: Path) -> None:
    module = Chain()
    penstock.stream(module, budget="64MiB", example=X, offload_folder=tmp_path)
    assert list(tmp_path.iterdir())
    del module
    gc.collect()
    assert not list(tmp_path.iterdir())
