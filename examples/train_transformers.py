"""transformers' Trainer within a budget: `penstock exec -- python examples/train_transformers.py`, or without `exec`.

A small GPT-2 with random weights learns to count, in steps of one to seven. It has up to 137 MiB live at one moment;
here it gets 100. It needs transformers and accelerate, and downloads nothing.
"""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from penstock.training.trainer import AutoSwapCallback

BUDGET = "100MiB"
WORDS, LENGTH = 64, 128


def counting(samples: int) -> list[dict[str, torch.Tensor]]:
    """Numbers that go up by the same step, from anywhere."""
    found = []
    for _ in range(samples):
        begin, step = torch.randint(WORDS, (1,)), torch.randint(1, 8, (1,))
        numbers = (begin + step * torch.arange(LENGTH)) % WORDS
        found.append({"input_ids": numbers, "labels": numbers})
    return found


def main() -> None:
    """Train, and say what was planned."""
    set_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS,
            n_positions=LENGTH,
            n_embd=128,
            n_layer=4,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    arguments = TrainingArguments(
        use_cpu=True,
        per_device_train_batch_size=16,
        max_steps=20,
        learning_rate=1e-3,
        logging_steps=4,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    callback = AutoSwapCallback(BUDGET)
    Trainer(model, arguments, train_dataset=counting(16 * 20), callbacks=[callback]).train()
    swap = callback.swap
    print(swap.explain())
    print(f"{swap.stats.iterations} iterations followed the plan, {swap.stats.departed} departed from it")


if __name__ == "__main__":
    main()
