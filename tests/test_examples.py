"""Made-up inputs have the names, shapes and dtypes that the model takes."""

from __future__ import annotations

import pytest
import torch
import transformers

from penstock.errors import UnsupportedModelError
from penstock.examples import example_inputs


def test_text_models_get_ids_of_their_vocabulary() -> None:
    config = transformers.BertConfig(vocab_size=50)
    (ids,) = example_inputs(transformers.BertModel, config, batch=3, tokens=7).values()
    assert ids.shape == (3, 7)
    assert ids.dtype == torch.int64
    assert 0 <= ids.min() <= ids.max() < 50


def test_encoder_decoders_get_ids_for_both() -> None:
    inputs = example_inputs(transformers.T5Model, transformers.T5Config(), batch=2, tokens=5)
    assert {name: tuple(ids.shape) for name, ids in inputs.items()} == {
        "input_ids": (2, 5),
        "decoder_input_ids": (2, 5),
    }


def test_vision_models_get_images_of_their_size_and_dtype() -> None:
    config = transformers.ViTConfig(image_size=32, num_channels=1, dtype=torch.bfloat16)
    (pixels,) = example_inputs(transformers.ViTModel, config, batch=2).values()
    assert pixels.shape == (2, 1, 32, 32)
    assert pixels.dtype == torch.bfloat16


def test_speech_models_get_spectrograms_or_samples() -> None:
    inputs = example_inputs(transformers.WhisperModel, transformers.WhisperConfig(), tokens=4)
    assert tuple(inputs["input_features"].shape) == (1, 80, 3000)
    assert tuple(inputs["decoder_input_ids"].shape) == (1, 4)
    (samples,) = example_inputs(transformers.Wav2Vec2Model, transformers.Wav2Vec2Config()).values()
    assert samples.shape == (1, 16000)


def test_made_up_inputs_are_the_same_each_time() -> None:
    config = transformers.BertConfig()
    first, second = (example_inputs(transformers.BertModel, config)["input_ids"] for _ in range(2))
    assert torch.equal(first, second)


def test_more_tokens_than_the_model_has_positions_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="--tokens"):
        example_inputs(transformers.BertModel, transformers.BertConfig(), tokens=513)


def test_a_model_whose_inputs_are_not_known_asks_for_them() -> None:
    with pytest.raises(UnsupportedModelError, match="--inputs"):
        example_inputs(torch.nn.Linear, None)
    with pytest.raises(UnsupportedModelError, match="--inputs"):
        example_inputs(transformers.ViTModel, object())
