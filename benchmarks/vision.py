"""DenseNet and CSPDarknet in plain torch: modules of one's own, that no library loads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class DenseNetConfig:
    """Layers in each dense block, channels that each adds, channels before the first, and classes: DenseNet-201's."""

    blocks: tuple[int, ...] = (6, 12, 48, 32)
    growth: int = 32
    stem: int = 64
    classes: int = 1000
    image_size: int = 224


class DenseNet(nn.Module):
    """Huang et al., arXiv 1608.06993: `(batch, 3, image_size, image_size)` in, `(batch, classes)` out."""

    def __init__(self, config: DenseNetConfig) -> None:
        super().__init__()
        channels = config.stem
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), *_activated(channels)]
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        for number, depth in enumerate(config.blocks):
            for _ in range(depth):
                layers.append(_DenseLayer(channels, config.growth))
                channels += config.growth
            layers += _activated(channels)
            if number + 1 < len(config.blocks):
                layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(channels, config.classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(pixel_values))
        return logits


class _DenseLayer(nn.Module):
    """Adds `growth` channels to what comes in, through a bottleneck of four times as many."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_activated(channels),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            *_activated(4 * growth),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([features, self.layers(features)], 1)


def _activated(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


@dataclass(frozen=True, slots=True)
class CSPDarknetConfig:
    """Residual blocks in each stage, and channels before the first, which each stage doubles: CSPDarknet-53's."""

    stages: tuple[int, ...] = (1, 2, 8, 8, 4)
    stem: int = 32
    image_size: int = 416


class CSPDarknet(nn.Module):
    """The backbone of YOLOv4 (Bochkovskiy et al., arXiv 2004.10934), which hands on its last three stages' features.

    `(batch, 3, image_size, image_size)` in; out, at strides of 8, 16 and 32, what YOLOv4's neck takes.
    """

    def __init__(self, config: CSPDarknetConfig) -> None:
        super().__init__()
        self.stem = _convolution(3, config.stem, 3)
        stages = [_Stage(config.stem << number, depth, number == 0) for number, depth in enumerate(config.stages)]
        self.stages = nn.ModuleList(stages)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.stem(pixel_values)
        found = []
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        return tuple(reversed(found[-3:]))


class _Stage(nn.Module):
    """Halves the sides and doubles the channels; one half of them goes through the blocks and one past them.

    In the first stage the halves are whole (Wang et al., "CSPNet", arXiv 1911.11929, as YOLOv4 has it).
    """

    def __init__(self, channels: int, depth: int, is_first: bool) -> None:
        super().__init__()
        wide = 2 * channels
        inside = wide if is_first else channels
        self.down = _convolution(channels, wide, 3, stride=2)
        self.past = _convolution(wide, inside, 1)
        self.enter = _convolution(wide, inside, 1)
        self.blocks = nn.Sequential(*(_Residual(inside, channels) for _ in range(depth)))
        self.leave = _convolution(inside, inside, 1)
        self.join = _convolution(2 * inside, wide, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.down(features)
        through = self.leave(self.blocks(self.enter(features)))
        joined: torch.Tensor = self.join(torch.cat([through, self.past(features)], 1))
        return joined


class _Residual(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(channels, hidden, 1), _convolution(hidden, channels, 3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = features + self.layers(features)
        return found


def _convolution(channels: int, filters: int, side: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, filters, side, stride=stride, padding=side // 2, bias=False),
        nn.BatchNorm2d(filters),
        nn.Mish(inplace=True),
    )
