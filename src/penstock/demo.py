"""The demo: a real model and a large one, each inside a budget far below its weights, against itself resident.

`run_demo` measures and returns; showing it is the command line's part.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from penstock.arms import ArmSpec, alternate, open_arms
from penstock.budget import parse_size
from penstock.checkpoint import Checkpoint
from penstock.demo_models import VIT_LARGE, minilm_folder, write_random_vit
from penstock.demo_texts import QUERIES, SENTENCES
from penstock.examples import example_inputs
from penstock.machine import measure
from penstock.models import ModelFolder, load_class, open_folder
from penstock.tensors import load_tensors, save_tensors

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""
MINILM_BUDGET = "16MiB"
VIT_BUDGET = "128MiB"
ROUNDS = 7
BATCH = 11
"""Sentences that go through the model at a time: their activations are part of the budget."""


LEARNING_ROUNDS = 5
"""Passes after which a stream has measured what its plan has to leave free."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One model, run resident and streamed in processes of their own.

    Attributes:
        title: for people.
        weights_nbytes: of all its weights.
        budget_nbytes: what the streamed process might use over its baseline.
        peak_nbytes: what it used.
        peak_source: `"cgroup"` or `"VmHWM"`.
        resident_seconds, streamed_seconds: medians of alternating passes.
        bytes_per_second: of the storage, measured just before.
        identical: whether both gave the same bits.
    """

    title: str
    weights_nbytes: int
    budget_nbytes: int
    peak_nbytes: int
    peak_source: str
    resident_seconds: float
    streamed_seconds: float
    bytes_per_second: float
    identical: bool

    @property
    def ratio(self) -> float:
        """Streamed latency over resident latency."""
        return self.streamed_seconds / self.resident_seconds

    @property
    def passed(self) -> bool:
        """Whether it kept both promises: the same bits, and no more than the budget."""
        return self.identical and self.peak_nbytes <= self.budget_nbytes


@dataclass(frozen=True, slots=True)
class Hit:
    """A sentence that answers a query, with their cosine similarity."""

    score: float
    sentence: str


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything that the demo found out: the best sentences for each query, and a row for each model."""

    ranking: Mapping[str, tuple[Hit, ...]]
    models: tuple[Measured, ...]

    @property
    def passed(self) -> bool:
        """Whether every model kept its promises."""
        return all(model.passed for model in self.models)


def run_demo(
    progress: Progress, *, rounds: int = ROUNDS, large: Mapping[str, object] = VIT_LARGE, large_budget: str = VIT_BUDGET
) -> DemoResult:
    """Runs the whole demo.

    Args:
        progress: told what is being done.
        rounds: how many passes of each arm count.
        large: configuration of the `ViTModel` that is written with random weights.
        large_budget: its budget.

    Raises:
        PenstockError: the weights are not installed, or a model cannot be run within its budget.
        OSError: the cache folder is not writable, or the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-demo-") as scratch:
        ranking, search = _search(Path(scratch), progress, rounds)
        vision = _large_model(Path(scratch), progress, rounds, large, large_budget)
    return DemoResult(ranking, (search, vision))


def _search(scratch: Path, progress: Progress, rounds: int) -> tuple[dict[str, tuple[Hit, ...]], Measured]:
    folder = minilm_folder()
    tokenizer = load_class("transformers", "AutoTokenizer").from_pretrained(str(folder))
    tokens = dict(tokenizer([*SENTENCES, *QUERIES], padding=True, return_tensors="pt"))
    count = len(SENTENCES) + len(QUERIES)
    batches = [{name: rows[i : i + BATCH] for name, rows in tokens.items()} for i in range(0, count, BATCH)]
    title = f"all-MiniLM-L6-v2, {count} sentences"
    outputs, measured = _measure(scratch, progress, rounds, title, folder, batches, MINILM_BUDGET)
    hidden = torch.cat([outputs[f"{number}.last_hidden_state"] for number in range(len(batches))])
    return rank(hidden, tokens["attention_mask"]), measured


def _large_model(scratch: Path, progress: Progress, rounds: int, config: Mapping[str, object], budget: str) -> Measured:
    name = f"vit-{config['hidden_size']}-{config['num_hidden_layers']}-random"
    title = f"writing {name} once"
    folder = write_random_vit(dict(config), name, lambda done, total: progress(title, done, total))
    opened = open_folder(folder)
    inputs = example_inputs(opened.load_class(), opened.load_config())
    is_large = config["hidden_size"] == VIT_LARGE["hidden_size"]
    title = "ViT-L, random weights, 1 image" if is_large else f"{name}, 1 image"
    return _measure(scratch, progress, rounds, title, folder, [inputs], budget)[1]


def _measure(
    scratch: Path,
    progress: Progress,
    rounds: int,
    title: str,
    folder: Path,
    batches: list[dict[str, torch.Tensor]],
    budget: str,
) -> tuple[dict[str, torch.Tensor], Measured]:
    files = tuple(str(scratch / f"inputs-{number}.safetensors") for number in range(len(batches)))
    for file, batch in zip(files, batches, strict=True):
        save_tensors(batch, Path(file))
    storage = measure(folder, quick=True, progress=lambda done, total: progress("measuring storage", done, total))
    opened = open_folder(folder)
    budget_nbytes = parse_size(budget)
    specs = _specs(folder, opened, files, budget_nbytes)
    progress(title, 0, rounds)
    with open_arms(specs[1:]) as first:  # the first process of a model finds out what it takes; later ones know
        alternate(first, LEARNING_ROUNDS)
    with open_arms(specs) as arms:
        resident, streamed = alternate(arms, rounds, lambda done, total: progress(title, done, total))
        arms[1].save_outputs(scratch / "outputs.safetensors")
    weights_nbytes = sum(source.nbytes for source in Checkpoint.open(folder).tensors.values())
    return load_tensors(scratch / "outputs.safetensors"), Measured(
        title=title,
        weights_nbytes=weights_nbytes,
        budget_nbytes=budget_nbytes,
        peak_nbytes=streamed.peak_nbytes,
        peak_source=streamed.peak_source,
        resident_seconds=resident.median_seconds,
        streamed_seconds=streamed.median_seconds,
        bytes_per_second=storage.bytes_per_second,
        identical=resident.outputs_sha256 == streamed.outputs_sha256,
    )


def _specs(folder: Path, opened: ModelFolder, files: tuple[str, ...], budget_nbytes: int) -> list[ArmSpec]:
    """Resident, and streamed with the same bits."""
    resident = ArmSpec(str(folder), opened.library, opened.class_name, files)
    return [resident, replace(resident, budget_nbytes=budget_nbytes, exact=True)]


def rank(hidden: torch.Tensor, attention_mask: torch.Tensor, best: int = 3) -> dict[str, tuple[Hit, ...]]:
    """The best sentences for each query, by cosine similarity of mean-pooled hidden states.

    Args:
        hidden: `(sentences + queries, tokens, width)`, the model's last hidden state.
        attention_mask: `(sentences + queries, tokens)`, one where a token is not padding.
        best: how many for each query.
    """
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    embeddings = torch.nn.functional.normalize(pooled, dim=-1)
    similarity = embeddings[len(SENTENCES) :] @ embeddings[: len(SENTENCES)].T
    ranking = {}
    for query, row in zip(QUERIES, similarity, strict=True):
        scores, places = row.topk(best)
        hits = zip(scores.tolist(), places.tolist(), strict=True)
        ranking[query] = tuple(Hit(score, SENTENCES[place]) for score, place in hits)
    return ranking
