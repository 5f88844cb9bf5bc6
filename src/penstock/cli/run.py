"""`penstock run`: a language model continues a text, or any model maps input tensors to output tensors."""

from __future__ import annotations

import inspect as python_inspect
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.budget import format_size
from penstock.cli.options import (
    Budget,
    Exact,
    Json,
    LeastMemory,
    MaxOverhead,
    Model,
    Strategy,
    Timeline,
    UsageError,
    check_writable,
)
from penstock.cli.terminal import Terminal, milliseconds
from penstock.errors import PenstockError, UnsupportedModelError
from penstock.models import open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.models import ModelFolder
    from penstock.stats import StreamStats
    from penstock.stream import Stream


def run(
    model: Model,
    budget: Budget,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Continue this text (language models).")] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Safetensors file with the forward's arguments by name.")
    ] = None,
    outputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Safetensors file to write the outputs to, by name.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="With --prompt: stop after so many tokens.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="With --prompt: above zero, sample; at zero, take the likeliest token.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="With --temperature: for the same sample again.")] = None,
    strategy: Strategy = "auto",
    timeline: Timeline = None,
    max_overhead: MaxOverhead = None,
    least_memory: LeastMemory = False,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Run MODEL inside a budget: with --prompt, or with --inputs and --outputs."""
    if prompt is not None:
        if inputs is not None or outputs is not None:
            raise UsageError("--prompt goes without --inputs and --outputs")
        if not prompt:
            raise UsageError("--prompt is empty")
    elif inputs is None or outputs is None:
        raise UsageError("give --prompt TEXT, or both --inputs FILE and --outputs FILE")
    check_writable("--outputs", outputs)
    check_writable("--timeline", timeline)
    terminal = Terminal(as_json=as_json)
    folder = open_folder(model)
    how = {
        "budget": budget,
        "strategy": strategy,
        "max_overhead": max_overhead,
        "least_memory": least_memory,
        "exact": exact,
    }
    if prompt is not None:
        from penstock.generation import Generation  # torch and transformers, which a wrong flag need not wait for

        job = Generation(folder, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        _continue_text(terminal, job, how, timeline)
    elif inputs is not None and outputs is not None:
        _map_tensors(terminal, folder, how, inputs, outputs, timeline)


def _continue_text(terminal: Terminal, job: Any, how: dict[str, Any], timeline: Path | None) -> None:
    with terminal.progress() as report:
        report("loading", 0, 0)
        job.load(**how)
    with recorded(job.stream, timeline):
        result = job.run(show=None if terminal.as_json else terminal.stream)
    terminal.show(
        f"\n{result.new_tokens} tokens, {result.tokens_per_second:.2f} tokens/s, first after "
        f"{result.first_token_seconds:.2f} s; {_spent(result.stats)}"
    )
    terminal.emit({**asdict(result), "tokens_per_second": result.tokens_per_second})


def _map_tensors(
    terminal: Terminal,
    folder: ModelFolder,
    how: dict[str, Any],
    inputs: Path,
    outputs: Path,
    timeline: Path | None,
) -> None:
    import torch

    import penstock
    from penstock.tensors import load_tensors, named_tensors, save_tensors

    arguments = load_tensors(inputs)
    cls = folder.load_class()
    _check_names(cls, arguments)
    with terminal.progress() as report:
        report("loading", 0, 0)
        with streamed(cls, folder.path, **how) as module:
            report("running", 0, 0)
            stream = penstock.inspect(module)
            with recorded(stream, timeline), torch.inference_mode(), refusals(f"{cls.__name__} refuses these inputs"):
                started = time.perf_counter()
                result = named_tensors(module(**arguments))
                seconds = time.perf_counter() - started
            save_tensors(result, outputs)
            stats = stream.stats
    for name, tensor in result.items():
        terminal.show(f"{name}: {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}")
    terminal.show(f"{milliseconds(seconds)}; {_spent(stats)}; written to {outputs}")
    described = {
        name: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)} for name, t in result.items()
    }
    terminal.emit({"outputs": described, "path": str(outputs), "seconds": seconds, "stats": asdict(stats)})


@contextmanager
def streamed(cls: Any, path: Path, **how: Any) -> Iterator[Any]:
    """The streamed model in evaluation mode, its stream closed at the end of the block."""
    import penstock

    module = penstock.from_pretrained(cls, path, **how).eval()
    try:
        yield module
    finally:
        penstock.inspect(module).close()


@contextmanager
def recorded(stream: Stream, timeline: Path | None) -> Iterator[None]:
    """What the stream does in the block is written to the file `timeline`, if one is named."""
    if timeline is None:
        yield
        return
    with stream.record() as recording:
        yield
    recording.save(timeline)


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turns whatever a model raises on inputs that do not suit it into one line."""
    try:
        yield
    except PenstockError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModelError(f"{what}: {first_line}") from error


def _check_names(cls: type, arguments: dict[str, Any]) -> None:
    known = python_inspect.signature(cls.forward).parameters  # type: ignore[attr-defined]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        names = [name for name in known if name not in ("self", "args", "kwargs")]
        raise UsageError(f"--inputs: {cls.__name__} has no argument {', '.join(unknown)}; it has {', '.join(names)}")


def _spent(stats: StreamStats) -> str:
    return (
        f"{format_size(stats.bytes_read)} read, {stats.stall_seconds:.2f} s waiting for storage, "
        f"peak {format_size(stats.peak_nbytes)}"
    )
