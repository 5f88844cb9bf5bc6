"""What is trained in the benchmark: six models with random weights, data and batches of one to four seconds here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.vgg import VGG, VGGConfig
from benchmarks.vision import DenseNet, DenseNetConfig

TOKENS = 128


@dataclass(frozen=True, slots=True)
class Trained:
    """One model, and how it is trained.

    Attributes:
        make: the model.
        batch: the arguments of one forward pass, and labels.
        optimizer: what steps it.
    """

    name: str
    title: str
    rows: int
    make: Callable[[], nn.Module]
    batch: Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
    optimizer: Callable[[Any], torch.optim.Optimizer]

    def loss(self, model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy of what the model says of `x`, whatever library it is from."""
        found = model(x)
        logits = found if isinstance(found, torch.Tensor) else found.logits
        return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def _images(rows: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 3, 224, 224, generator=chance), torch.randint(1000, (rows,), generator=chance)


def _words(rows: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(10, 30000, (rows, TOKENS + 1), generator=chance)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


def _resnet50() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(depths=[3, 4, 6, 3], layer_type="bottleneck", num_labels=1000)
    return ResNetForImageClassification(config)


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False, bos_token_id=0, eos_token_id=0))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig())


def _alexnet() -> nn.Module:
    """Krizhevsky, arXiv 1404.5997: one column."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True)),
        *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Linear(4096, 1000)),
    )


TRAINED = (
    Trained("resnet50", "ResNet-50", 12, _resnet50, _images, _sgd),
    Trained("vgg16", "VGG-16", 6, lambda: VGG(VGGConfig()), _images, _sgd),
    Trained("alexnet", "AlexNet", 96, _alexnet, _images, _sgd),
    Trained("densenet121", "DenseNet-121", 12, lambda: DenseNet(DenseNetConfig(blocks=(6, 12, 24, 16))), _images, _sgd),
    Trained("gpt2", "GPT-2 small", 4, _gpt2, _words, _adam),
    Trained("bert-base", "BERT base", 6, _bert, _words, _adam),
)


def find(name: str) -> Trained:
    """The one of that name."""
    return next(trained for trained in TRAINED if trained.name == name)
