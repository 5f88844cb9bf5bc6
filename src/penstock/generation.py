"""Continuing a text with a streamed causal language model, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import penstock
from penstock.errors import CheckpointError, UnsupportedModelError
from penstock.models import ModelFolder, load_class
from penstock.rehearsal import reserve
from penstock.stats import StreamStats
from penstock.stream import Stream


@dataclass(frozen=True, slots=True)
class Generated:
    """A continued text.

    Attributes:
        text: the new part.
        prompt_tokens, new_tokens: how many.
        first_token_seconds: from the call to the first new token: the prompt's own pass.
        seconds: in all.
        stats: the stream's counters.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    first_token_seconds: float
    seconds: float
    stats: StreamStats

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first; of that one where it is alone."""
        if self.new_tokens < 2:
            return self.new_tokens / self.seconds
        return (self.new_tokens - 1) / (self.seconds - self.first_token_seconds)


class Generation:
    """One text to continue.

    Args:
        folder: the model; it needs a tokenizer.
        prompt: the text.
        max_new_tokens: where to stop at the latest.
        temperature: of the sampling; zero: the likeliest token each time.
        seed: of the sampling.

    Raises:
        UnsupportedModelError: it is not a causal language model.
        CheckpointError: its tokenizer is missing or damaged.
    """

    def __init__(
        self,
        folder: ModelFolder,
        prompt: str,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self._folder, self._max_new_tokens, self._temperature, self._seed = folder, max_new_tokens, temperature, seed
        self._cls = folder.load_class()
        if not getattr(self._cls, "can_generate", bool)() or folder.config.get("is_encoder_decoder"):
            raise UnsupportedModelError(
                f"{folder.path}: {self._cls.__name__} is not a causal language model: use --inputs and --outputs"
            )
        self._tokenizer = _load_tokenizer(folder)
        self._inputs = self._tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        if self._inputs["input_ids"].shape[1] == 0:
            raise UnsupportedModelError(f"the prompt {prompt!r} has no tokens in this model's vocabulary")
        self._module: Any = None

    def load(self, budget: int, **how: Any) -> None:
        """Loads the model, streamed within `budget` bytes, with room for the whole text.

        Args:
            how: what else `penstock.from_pretrained` takes.

        Raises:
            BudgetInfeasibleError: the budget has no room for the prompt, or for the last token's key-value cache.
        """
        module = penstock.from_pretrained(self._cls, self._folder.path, budget=budget, **how).eval()
        try:
            reserve(module, self._inputs, self._max_new_tokens)
        except BaseException:
            penstock.inspect(module).close()
            raise
        self._module = module

    @property
    def stream(self) -> Stream:
        """The loaded model's."""
        return penstock.inspect(self._module)

    def run(self, show: Callable[[str], None] | None = None) -> Generated:
        """Continues the text and closes the model's stream.

        Args:
            show: called with each piece of text as soon as its words are complete.
        """
        clock = _Clock()
        streamers: list[Any] = [clock]
        if show is not None:
            streamers.append(_text_streamer(self._tokenizer, show))
        if self._seed is not None:
            torch.manual_seed(self._seed)
        handle = self.stream
        prompt_tokens = self._inputs["input_ids"].shape[1]
        try:
            started = time.perf_counter()
            with torch.inference_mode():
                ids = self._module.generate(
                    **self._inputs,
                    max_new_tokens=self._max_new_tokens,
                    streamer=_Both(streamers),
                    **self._sampling(),
                )[0, prompt_tokens:]
            seconds = time.perf_counter() - started
            stats = handle.stats
        finally:
            handle.close()
        return Generated(
            text=self._tokenizer.decode(ids, skip_special_tokens=True),
            prompt_tokens=prompt_tokens,
            new_tokens=len(ids),
            first_token_seconds=clock.first_seconds - started,
            seconds=seconds,
            stats=stats,
        )

    def _sampling(self) -> dict[str, Any]:
        if self._temperature > 0:
            return {"do_sample": True, "temperature": self._temperature, "num_beams": 1}
        # The folder's generation_config.json may set these, and they mean nothing without sampling.
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "num_beams": 1}


def _load_tokenizer(folder: ModelFolder) -> Any:
    try:
        return load_class("transformers", "AutoTokenizer").from_pretrained(str(folder.path))
    except Exception as error:  # tokenizer classes fail as they like
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{folder.path}: its tokenizer cannot be loaded ({first_line})") from error


def _text_streamer(tokenizer: Any, show: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Shown(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(text)

    return Shown(tokenizer, skip_prompt=True, skip_special_tokens=True)


class _Both:
    """Several streamers as one; transformers calls `put` with the prompt's tokens, then with each new one."""

    def __init__(self, streamers: list[Any]) -> None:
        self._streamers = streamers

    def put(self, value: torch.Tensor) -> None:
        for streamer in self._streamers:
            streamer.put(value)

    def end(self) -> None:
        for streamer in self._streamers:
            streamer.end()


class _Clock:
    """When the first new token came."""

    def __init__(self) -> None:
        self._puts = 0
        self.first_seconds = 0.0

    def put(self, _value: torch.Tensor) -> None:
        self._puts += 1
        if self._puts == 2:
            self.first_seconds = time.perf_counter()

    def end(self) -> None:
        pass
