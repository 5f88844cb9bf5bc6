"""An ordinary training loop within a budget: `penstock exec -- python examples/train.py`, or without `penstock exec`.

A small ResNet-like network on random images has up to 116 MiB live at one moment; here it gets 90.
"""

from __future__ import annotations

import torch
from torch import nn

import penstock

BUDGET = "90MiB"
STEPS = 9


class Block(nn.Module):
    """Two convolutions, and what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
            *(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(x) + x)


def main() -> None:
    """Train, and say what was planned."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        *(Block(64) for _ in range(6)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with penstock.autoswap(model, optimizer, budget=BUDGET) as swap:
        for step in range(STEPS):
            images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            print(f"step {step}: loss {loss.item():.3f}")
    print(swap.explain())
    print(f"{swap.stats.iterations} iterations followed the plan, {swap.stats.departed} departed from it")


if __name__ == "__main__":
    main()
