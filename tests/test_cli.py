"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import penstock
from penstock.arms import ArmResult, ArmSpec
from penstock.cli.app import run_app
from penstock.generation import Generation
from penstock.models import open_folder

from .measuring import measure_little
from .tiny_models import write_bert, write_qwen


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    tensors = {"input_ids": torch.arange(32).view(2, 16), "attention_mask": torch.ones(2, 16, dtype=torch.int64)}
    save_file(tensors, tmp_path / "inputs.safetensors")
    return tmp_path / "inputs.safetensors"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["plan"], "Missing argument 'MODEL'"),
        (["plan", "x"], "Missing option '--budget'"),
        (["plan", "x", "--budget", "1MiB", "--batch", "0"], "'--batch'"),
        (["plan", "x", "--budget", "1MiB", "--tokens", "many"], "'--tokens'"),
        (["plan", "x", "--budget", "1MiB", "surplus"], "surplus"),
        (["bench", "x"], "Missing option '--budget'"),
        (["bench", "x", "--budget", "1MiB", "--rounds", "3"], "'--rounds'"),
        (["pack", "x"], "Missing argument 'OUT'"),
        (["machine", "/nowhere"], "/nowhere"),
        (["run", "x", "--budget", "1MiB"], "--prompt TEXT, or both --inputs FILE and --outputs FILE"),
        (["run", "x", "--budget", "1MiB", "--inputs", "y"], "--outputs"),
        (["run", "x", "--budget", "1MiB", "--prompt", ""], "--prompt is empty"),
        (["run", "x", "--budget", "1MiB", "--prompt", "a", "--inputs", "y"], "goes without"),
        (["run", "x", "--budget", "1MiB", "--prompt", "a", "--temperature", "-1"], "'--temperature'"),
        (["run", "x", "--budget", "1MiB", "--prompt", "a", "--max-new-tokens", "0"], "'--max-new-tokens'"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(
    fails: Callable[..., str], arguments: list[str], message: str
) -> None:
    assert message in fails(*arguments)


@pytest.mark.parametrize("budget", ["", "0", "-1", "lots", "1XB", "1e3", "0MiB", "nan"])
@pytest.mark.parametrize("command", ["plan", "bench", "run"])
def test_a_budget_that_is_no_size_is_told_in_one_line(fails: Callable[..., str], command: str, budget: str) -> None:
    assert "--budget" in fails(command, "x", f"--budget={budget}", *(["--prompt", "a"] if command == "run" else []))


COMMANDS_ON_MODELS = [
    ["plan", "MODEL", "--budget", "8MiB"],
    ["bench", "MODEL", "--budget", "8MiB"],
    ["run", "MODEL", "--budget", "8MiB", "--prompt", "a"],
    ["run", "MODEL", "--budget", "8MiB", "--inputs", "INPUTS", "--outputs", "OUTPUTS"],
    ["pack", "MODEL", "OUT"],
]


@pytest.mark.parametrize("command", COMMANDS_ON_MODELS)
@pytest.mark.parametrize("model", ["missing", "file", "empty", "garbage", "list", "pipeline"])
def test_what_is_no_model_folder_is_told_in_one_line(
    fails: Callable[..., str], tmp_path: Path, inputs: Path, command: list[str], model: str
) -> None:
    folder = tmp_path / model
    if model == "file":
        folder.write_bytes(b"x")
    elif model != "missing":
        folder.mkdir()
    if model == "garbage":
        (folder / "config.json").write_bytes(b"\x00\xff")
    if model == "list":
        (folder / "config.json").write_text("[]")
    if model == "pipeline":
        (folder / "model_index.json").write_text("{}")
    places = {"MODEL": folder, "INPUTS": inputs, "OUTPUTS": tmp_path / "outputs.safetensors", "OUT": tmp_path / "out"}
    message = fails(*(places.get(word, word) for word in command))
    assert str(folder) in message
    assert not (tmp_path / "outputs.safetensors").exists()
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_told_in_one_line(fails: Callable[..., str], tmp_path: Path, bert: Path) -> None:
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:100_000])
    assert "model.safetensors" in fails("plan", tmp_path, "--budget", "8MiB")


def test_a_strategy_that_does_not_exist_is_told_in_one_line(fails: Callable[..., str], bert: Path) -> None:
    assert "fastest" in fails("plan", bert, "--budget", "8MiB", "--strategy", "fastest")


def test_an_overhead_out_of_reach_is_told_in_one_line(fails: Callable[..., str], bert: Path) -> None:
    command = ("plan", bert, "--budget", "8MiB", "--strategy", "two-stage", "--max-overhead")
    assert "out of reach" in fails(*command, "0")
    assert "max_overhead is -1.0" in fails(*command, "-1")
    assert "contradict" in fails(*command, "0.1", "--least-memory")


def test_more_tokens_than_the_model_takes_are_told_in_one_line(fails: Callable[..., str], bert: Path) -> None:
    assert "--tokens" in fails("plan", bert, "--budget", "8MiB", "--tokens", "4096")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, "no such file"),
        (b"garbage", "not a safetensors file"),
        ({}, "holds no tensors"),
        ({"nonsense": torch.zeros(1)}, "no argument nonsense"),
        ({"input_ids": torch.zeros(1, 4)}, "refuses these inputs"),
        ({"input_ids": torch.full((1, 4), 10**6)}, "refuses these inputs"),
    ],
)
def test_wrong_inputs_are_told_in_one_line_and_leave_no_outputs(
    fails: Callable[..., str], tmp_path: Path, bert: Path, tensors: dict[str, torch.Tensor] | bytes | None, message: str
) -> None:
    file = tmp_path / "inputs.safetensors"
    if isinstance(tensors, bytes):
        file.write_bytes(tensors)
    elif tensors is not None:
        save_file(tensors, file)
    outputs = tmp_path / "outputs.safetensors"
    told = fails("run", bert, "--budget", "8MiB", "--inputs", file, "--outputs", outputs)
    assert message.lower() in told.lower()
    assert not outputs.exists()


def test_outputs_into_a_folder_that_does_not_exist_are_refused_before_anything_runs(
    fails: Callable[..., str], tmp_path: Path, bert: Path, inputs: Path
) -> None:
    outputs = tmp_path / "nowhere" / "outputs.safetensors"
    assert "nowhere" in fails("run", bert, "--budget", "8MiB", "--inputs", inputs, "--outputs", outputs)


def test_a_prompt_for_a_model_that_writes_no_text_names_the_other_way(fails: Callable[..., str], bert: Path) -> None:
    assert "--inputs" in fails("run", bert, "--budget", "8MiB", "--prompt", "hello")


def test_an_infeasible_budget_names_the_smallest_that_works(
    fails: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bert: Path
) -> None:
    # What the process itself takes differs by a little from one call to the next.
    monkeypatch.setattr("penstock.footprint.read_memory", lambda: None)
    assert "1024" in fails("plan", bert, "--budget", "1KiB")
    assert run_app(["plan", str(bert), "--budget", "1KiB", "--json"]) == 2
    needed = json.loads(capsys.readouterr().out)["needed_nbytes"]
    assert run_app(["plan", str(bert), "--budget", str(needed)]) == 0
    assert run_app(["plan", str(bert), "--budget", str(needed - 512)]) == 2


def test_a_plan_is_told_in_words_and_as_json_that_reads_back(
    capsys: pytest.CaptureFixture[str], answers: Callable[..., dict[str, object]], bert: Path
) -> None:
    assert run_app(["plan", str(bert), "--budget", "12MiB"]) == 0
    assert "12.0 MiB" in capsys.readouterr().out
    plan = penstock.Plan.from_json(json.dumps(answers("plan", bert, "--budget", "12MiB")))
    assert plan.budget_nbytes == 12 * 2**20
    assert any("encoder.layer.3.output.dense.weight" in name for name in plan.weight_names)


def test_outputs_are_the_resident_models_bits(
    answers: Callable[..., dict[str, object]], tmp_path: Path, bert: Path, inputs: Path
) -> None:
    outputs = tmp_path / "outputs.safetensors"
    answer = answers("run", bert, "--budget", "12MiB", "--inputs", inputs, "--outputs", outputs)
    assert answer["outputs"] == {
        "last_hidden_state": {"dtype": "float32", "shape": [2, 16, 256]},
        "pooler_output": {"dtype": "float32", "shape": [2, 256]},
    }
    with torch.inference_mode():
        expected = transformers.BertModel.from_pretrained(bert)(**load_file(inputs))
    found = load_file(outputs)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture(scope="module")
def continued(qwen: Path) -> str:
    """What the resident model makes of `hello`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(qwen)
    model = transformers.AutoModelForCausalLM.from_pretrained(qwen).eval()
    prompt = tokenizer("hello", return_tensors="pt")
    ids = model.generate(input_ids=prompt["input_ids"], do_sample=False, max_new_tokens=12)
    return str(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def test_a_prompt_is_continued_as_the_resident_model_would(
    capsys: pytest.CaptureFixture[str], answers: Callable[..., dict[str, object]], qwen: Path, continued: str
) -> None:
    arguments = ["run", str(qwen), "--budget", "24MiB", "--prompt", "hello", "--max-new-tokens", "12"]
    assert run_app(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith(continued)
    assert "12 tokens" in out
    assert "tokens/s" in out
    assert err == ""
    answer = answers(*arguments)
    assert answer["text"] == continued
    assert answer["new_tokens"] == 12


def test_text_is_shown_while_it_is_made(qwen: Path, continued: str) -> None:
    job = Generation(open_folder(qwen), "hello", max_new_tokens=12)
    job.load(24 * 2**20)
    shown: list[str] = []
    job.run(show=shown.append)
    assert "".join(shown) == continued


def test_an_interrupt_while_text_is_made_leaves_nothing_behind(qwen: Path) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    job = Generation(open_folder(qwen), "hello", max_new_tokens=200)
    job.load(24 * 2**20)
    with pytest.raises(KeyboardInterrupt):
        job.run(show=interrupt)


def test_the_same_seed_gives_the_same_sample(answers: Callable[..., dict[str, object]], qwen: Path) -> None:
    arguments = ["run", qwen, "--budget", "24MiB", "--prompt", "a", "--max-new-tokens", "8", "--temperature", "2"]
    first = answers(*arguments, "--seed", "1")["text"]
    assert answers(*arguments, "--seed", "1")["text"] == first


def test_a_packed_model_is_the_same_model_in_execution_order(
    answers: Callable[..., dict[str, object]], fails: Callable[..., str], tmp_path: Path, bert: Path
) -> None:
    answer = answers("pack", bert, tmp_path / "packed")
    assert answer["in_execution_order"] is True
    packed = load_file(tmp_path / "packed" / "model.safetensors")
    original = load_file(bert / "model.safetensors")
    assert packed.keys() == original.keys()
    assert all(torch.equal(packed[name], original[name]) for name in packed)
    assert "--overwrite" in fails("pack", bert, tmp_path / "packed")
    answers("pack", bert, tmp_path / "packed", "--overwrite")


def test_bench_compares_each_budget_with_the_resident_model(
    answers: Callable[..., dict[str, object]], bert: Path, inputs: Path
) -> None:
    answer = answers("bench", bert, "--budget", "64MiB", "--inputs", inputs)
    cells = answer["cells"]
    assert isinstance(cells, list)
    (cell,) = cells
    assert cell["budget_nbytes"] == 64 * 2**20
    assert cell["bit_identical"]
    assert cell["within_budget"]
    assert len(cell["resident"]["seconds"]) == len(cell["streamed"]["seconds"]) == 7


@pytest.mark.parametrize(("slices", "code", "said"), [(0, 1, "no"), (3, 0, "no, in slices")])
def test_bits_may_differ_in_slices_only(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bert: Path,
    inputs: Path,
    slices: int,
    code: int,
    said: str,
) -> None:
    counters = {"bytes_read": 1.0, "passes": 1.0, "stall_seconds": 0.0, "sliced_weights": slices}
    plain = ArmResult((1.0,), 1.0, 1.0, 1, "VmHWM", "these bits", {})
    budgeted = dataclasses.replace(plain, outputs_sha256="other bits", stats=counters)
    monkeypatch.setattr("penstock.cli.bench._compare", lambda *_: [(2**20, plain, budgeted)])
    assert run_app(["bench", str(bert), "--budget", "1MiB", "--inputs", str(inputs)]) == code
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "1.0 MiB" in line)
    assert row.rstrip(" │|").endswith(said)


@pytest.mark.parametrize("given", [[], ["--exact"]])
@pytest.mark.parametrize("command", COMMANDS_ON_MODELS[:4])
def test_exact_is_asked_for_with_a_flag(
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
    tmp_path: Path,
    bert: Path,
    qwen: Path,
    inputs: Path,
    command: list[str],
    given: list[str],
) -> None:
    def stream(*_: object, exact: bool, **__: object) -> NoReturn:
        raise penstock.PlanError(f"exact={exact}")

    def open_arms(specs: Sequence[ArmSpec]) -> NoReturn:
        stream(exact=specs[0].exact)

    monkeypatch.setattr(penstock, "from_pretrained", stream)
    monkeypatch.setattr("penstock.arms.open_arms", open_arms)
    model = qwen if "--prompt" in command else bert
    places = {"MODEL": model, "INPUTS": inputs, "OUTPUTS": tmp_path / "outputs.safetensors"}
    assert fails(*(places.get(word, word) for word in command), *given) == f"exact={bool(given)}"


def test_bench_tells_in_one_line_what_its_processes_refuse(fails: Callable[..., str], bert: Path, inputs: Path) -> None:
    assert "1.0 KiB" in fails("bench", bert, "--budget", "1KiB", "--inputs", inputs)


def test_machine_prints_a_table_or_json(
    capsys: pytest.CaptureFixture[str],
    answers: Callable[..., dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("penstock.machine._FULL_SECONDS", 0.001)
    monkeypatch.setattr("penstock.machine._FULL_PROBE_NBYTES", 8 * 2**20)
    assert run_app(["machine", str(tmp_path)]) == 0
    assert "4 threads" in capsys.readouterr().out
    assert answers("machine", tmp_path).keys() == {"machine", "storage"}


def test_machine_tells_what_loads_cost_layers(
    capsys: pytest.CaptureFixture[str],
    answers: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("penstock.machine._FULL_SECONDS", 0.001)
    monkeypatch.setattr("penstock.machine._FULL_PROBE_NBYTES", 8 * 2**20)
    measure_little(monkeypatch)
    assert run_app(["machine", str(tmp_path), "--capacity"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("hierarchical", "reusable", "300%", "percentage points (median)"))
    found = answers("machine", tmp_path, "--capacity")["capacity"]
    assert [one["kind"] for one in found["classes"]] == ["hierarchical", "reusable", "elemental"]
    assert found["median_error"] >= 0
    assert len(found["samples"]) == 30


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["plan", "--help"]])
def test_help_is_no_error(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run_app(arguments) == 0
    out, err = capsys.readouterr()
    assert "Usage" in out
    assert err == ""


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["--version"]) == 0
    assert capsys.readouterr().out == f"penstock {penstock.__version__}\n"


def test_errors_are_json_too_where_json_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["plan", "/nowhere", "--budget", "1MiB", "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == f"error: {json.loads(out)['error']}\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "/disk"), "error: /disk: No space left on device\n"),
        (MemoryError(), "error: out of memory\n"),
        (penstock.StorageError("one\ntwo"), "error: one two\n"),
    ],
)
def test_failures_while_running_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("penstock.cli.machine.measure", fail)
    assert run_app(["machine"]) == 2
    assert capsys.readouterr() == ("", line)


def test_an_interrupt_ends_the_command_quietly() -> None:
    script = (
        "import os, signal, penstock.cli.app as app, penstock.cli.machine as machine\n"
        "machine.measure = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "app.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, "machine"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
