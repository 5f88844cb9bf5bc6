"""transformers' Trainer within a budget: `penstock exec -- python examples/train_transformers.py`, or without `exec`.

A small GPT-2 with random weights learns to count. It has up to 187 MiB live at one moment; here it gets 130. It needs
transformers and accelerate, and downloads nothing.
"""

from __future__ import annotations

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from penstock.training.trainer import AutoSwapCallback

BUDGET = "130MiB"
STEPS, BATCH = 8, 16
WORDS, LENGTH = 64, 128


def counting(samples: int) -> list[dict[str, torch.Tensor]]:
    """Numbers that go up by the same step each time, from anywhere and back to zero."""
    found = []
    for _ in range(samples):
        first, step = torch.randint(WORDS, (1,)), torch.randint(1, 8, (1,))
        numbers = (first + step * torch.arange(LENGTH)) % WORDS
        found.append({"input_ids": numbers, "labels": numbers})
    return found


def main() -> None:
    """Train, and say what was planned."""
    set_seed(0)
    sizes = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 128, "n_layer": 4, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    callback = AutoSwapCallback(BUDGET)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,  # which is where memory is planned for
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=counting(STEPS * BATCH), callbacks=[callback]).train()
    swap = callback.swap
    print(swap.explain())
    print(f"{swap.stats.iterations} iterations followed the plan, {swap.stats.departed} departed from it")


if __name__ == "__main__":
    main()
