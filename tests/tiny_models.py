"""Model folders in the Hub's layout, small enough for a test, written with random weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models

PRINTABLE = range(32, 127)


def write_bert(folder: Path) -> Path:
    """An encoder of 13 MB."""
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    return _write(folder, transformers.BertModel, config)


def write_qwen(folder: Path) -> Path:
    """A decoder of 24 MB with a tokenizer whose tokens are single characters."""
    config = transformers.Qwen3Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    vocabulary = {chr(code): code for code in PRINTABLE}
    vocabulary |= {f"<{code}>": code for code in range(512) if code not in PRINTABLE}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return _write(folder, transformers.Qwen3ForCausalLM, config)


def _write(folder: Path, cls: type, config: transformers.PreTrainedConfig) -> Path:
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(0)
        cls(config).save_pretrained(folder)
    return folder
