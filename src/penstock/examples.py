"""Inputs to try a transformers model with, made up from its configuration: the right names, shapes and dtypes.

The values are random with a fixed seed: what streams and how long it takes does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from penstock.errors import UnsupportedModelError

_AUDIO_SAMPLES = 16000


def example_inputs(cls: Any, config: Any, *, batch: int = 1, tokens: int = 128) -> dict[str, torch.Tensor]:
    """Arguments for one forward of `cls`: `(batch, tokens)` ids, or images or audio of the configured size.

    Args:
        cls: a transformers model class; its `main_input_name` decides.
        config: its configuration object.
        batch: how many rows.
        tokens: how long a row, for models that read text.

    Raises:
        UnsupportedModelError: it takes something else; inputs have to be given.
    """
    name = getattr(cls, "main_input_name", None)
    make = _MAKERS.get(name) if isinstance(name, str) else None
    if make is None:
        raise UnsupportedModelError(
            f"{cls.__name__} takes {name or 'inputs'} that cannot be made up: give a safetensors file with --inputs"
        )
    try:
        inputs = {str(name): make(config, batch, tokens)}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = _ids(config, batch, tokens)
    except UnsupportedModelError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{cls.__name__}: its configuration does not say the shape of {name} ({error}): give a safetensors file "
            "with --inputs"
        ) from error
    return inputs


def _ids(config: Any, batch: int, tokens: int) -> torch.Tensor:
    text = _part(config, "text_config")
    longest = getattr(text, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < tokens:
        raise UnsupportedModelError(f"{tokens} tokens are more than the model's {longest}: give fewer with --tokens")
    # The lowest ids are padding and other special tokens, from which some models derive positions and masks.
    lowest = min(10, int(text.vocab_size) - 1)
    return torch.randint(lowest, int(text.vocab_size), (batch, tokens), generator=_generator())


def _pixels(config: Any, batch: int, _tokens: int) -> torch.Tensor:
    vision = _part(config, "vision_config")
    size = getattr(vision, "image_size", 224)  # convolutional models take any, and say none
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return _floats(config, batch, int(vision.num_channels), height, width)


def _spectrogram(config: Any, batch: int, _tokens: int) -> torch.Tensor:
    return _floats(config, batch, int(config.num_mel_bins), 2 * int(config.max_source_positions))


def _samples(config: Any, batch: int, _tokens: int) -> torch.Tensor:
    return _floats(config, batch, _AUDIO_SAMPLES)


_MAKERS: dict[str, Callable[[Any, int, int], torch.Tensor]] = {
    "input_ids": _ids,
    "pixel_values": _pixels,
    "input_features": _spectrogram,
    "input_values": _samples,
}


def _part(config: Any, name: str) -> Any:
    """The part of a configuration of several models, or all of it."""
    part = getattr(config, name, None)
    return config if part is None else part


def _floats(config: Any, *shape: int) -> torch.Tensor:
    dtype = getattr(config, "dtype", None)
    values = torch.randn(shape, generator=_generator())
    return values.to(dtype) if isinstance(dtype, torch.dtype) else values


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
