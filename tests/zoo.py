"""Modules whose control flow is not a straight line, each with calls to make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from .streaming import WIDTH


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(), linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.gelu(self.first(x)))


class Shared(nn.Module):
    """The same block at several depths, as in ALBERT, between blocks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.own = Block(), nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.own:
            x = block(self.shared(x))
        return x


class Tied(nn.Module):
    """A token table that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, WIDTH, padding_idx=0)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(WIDTH, 200, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(ids)))


class TiedParameters(nn.Module):
    """Two layers of different kinds over one parameter object, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.middle, self.down = linear(), Block(), linear()
        self.down.weight = self.up.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.middle(self.up(x))) @ self.up.weight.t()


class Branching(nn.Module):
    """Which layers run, how often and in which order is decided by a switch that no trace has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(5))
        self.other = Block()

    def forward(self, x: torch.Tensor, path: int = 0) -> torch.Tensor:
        order = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 0, 3, 0], [2], [1, 3, 1, 3, 4]][path % 5]
        for index in order:
            x = self.layers[index](x)
        return self.other(x) if path % 2 else x


class ByValue(nn.Module):
    """Goes one way or the other by what it has computed: no dry run can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right, self.last = Block(), Block(), Block(), Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = self.left(x) if x.sum().item() > 0 else self.right(x)
        return self.last(x)


class EarlyExit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(6))

    def forward(self, x: torch.Tensor, stop: int = 6) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            if index == stop:
                break
            x = layer(x)
        return x


class Recursive(nn.Module):
    """A layer that calls itself while it holds its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)
        self.inner, self.tail = Block(), Block()

    def forward(self, x: torch.Tensor, depth: int = 2) -> torch.Tensor:
        x = x @ self.weight
        if depth:
            x = self(self.inner(x), depth - 1) if depth == 1 else self.inner(x) @ self.weight
        return self.tail(x @ self.weight)


class Nest(nn.Module):
    """Holds a weight around its children, which it calls in an order of the caller's choice, one within another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)
        self.a, self.b, self.c = linear(), linear(), linear()

    def forward(self, x: torch.Tensor, inside_out: bool = False) -> torch.Tensor:
        before = x @ self.scale
        if inside_out:
            return self.a(self.c(self.b(before)) @ self.scale) + F.linear(before, self.c.weight)
        return self.c(self.b(self.a(before))) @ self.scale


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.child = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH), None

    def forward(self, x: torch.Tensor, child: nn.Module | None = None) -> torch.Tensor:
        own = self.own
        x = x @ own
        return (child(x) if child is not None else x) @ own


class Swapping(nn.Module):
    """Traced one after the other, later one inside the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Wrapper(), Wrapper(), Wrapper()
        self.blocks = nn.Sequential(*[Block() for _ in range(4)])

    def forward(self, x: torch.Tensor, nested: str = "") -> torch.Tensor:
        if nested == "abc":
            return self.a(x, lambda y: self.b(y, self.c))
        if nested == "cba":
            return self.c(x, lambda y: self.b(y, self.a))
        if nested == "aa":
            return self.a(x, lambda y: self.a(y, self.b))
        return self.c(self.b(self.blocks(self.a(x))))


class TiedSwapping(Swapping):
    """Its first and last layer share a weight, which comes twice when they run in line."""

    def __init__(self) -> None:
        super().__init__()
        self.c.own = self.a.own


class SometimesRecurrent(nn.Module):
    """Layers that keep their weights in lists of their own, on a path that no trace has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.rnn = nn.GRU(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, recurrent: bool = False) -> torch.Tensor:
        return self.blocks(self.rnn(x)[0] if recurrent else x)


class AttentionByValue(nn.Module):
    """Neither contiguous nor to be followed by a dry run: its first pass is recorded while it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.block, self.other = Attention(True), Block(), Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(x)
        return self.block(x) if x.mean().item() > 0 else self.other(x)


class Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=batch_first)
        self.block = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.attention(x, x, x, need_weights=False)[0])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


class Functional(nn.Module):
    """Reads the weights of modules that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear() for _ in range(4))
        self.table, self.blocks = nn.Embedding(150, WIDTH), nn.Sequential(Block(), Block(), Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(x)
        for layer in self.layers:
            x = F.linear(torch.tanh(x), layer.weight, layer.bias)
        return x @ self.table.weight[:50].t() + self.table.weight.sum()


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(WIDTH, WIDTH // 2, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.out(self.rnn(x)[0]))


def parametrized() -> nn.Module:
    return nn.Sequential(*[parametrizations.weight_norm(linear()) for _ in range(4)])


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.ParameterList(nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH) for _ in range(3))
        self.named = nn.ParameterDict({"x": nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)})
        self.modules_by_name = nn.ModuleDict({"left": Block(), "right": Block()})

    def forward(self, x: torch.Tensor, which: str = "left") -> torch.Tensor:
        for weight in self.plain:
            x = x @ weight
        return self.modules_by_name[which](x @ self.named["x"])


class Position(nn.Module):
    """Gives out a view of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, count: int, scaled: bool = True) -> torch.Tensor:
        return self.weight[:count] * 2 if scaled else self.weight[:count]


class Views(nn.Module):
    """Adds a view that outlives the call that gave it, after others had time to take its place."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.blocks = Position(), nn.Sequential(Block(), Block(), Block())

    def forward(self, x: torch.Tensor, scaled: bool = True) -> torch.Tensor:
        position = self.position(x.shape[-2], scaled)
        return self.blocks(x) + position


class GivesWeights(nn.Module):
    """Returns parts of its own weights, one of which a later layer's bytes would replace."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(linear(), linear(), linear(), linear())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers(x), self.layers[0].weight[:2]


class Stateful(nn.Module):
    """Keeps tensors from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.last: torch.Tensor | None = None
        self.seen: list[torch.Tensor] = []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(x)
        if self.last is not None:
            x = x + self.last
        self.last = x
        self.seen.append(x.mean())
        self.count += 1
        return x * self.count + torch.stack(self.seen).sum()


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), nn.Dropout(0.5), Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x + torch.randn_like(x))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.table = nn.EmbeddingBag(150, WIDTH), nn.Embedding(150, WIDTH)
        self.block = Block()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.block(self.bag(ids) + self.table(ids).sum(1))


def channels_last() -> nn.Module:
    layers = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


class Transposed(nn.Module):
    """Weights that lie in memory the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter((torch.randn(WIDTH, WIDTH) / WIDTH).t()) for _ in range(2))
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x @ self.first) @ self.second


@dataclass(frozen=True)
class Case:
    """A module to build, and the arguments of calls to make of it; the first is the one that plans know of."""

    build: Callable[[], nn.Module]
    calls: tuple[tuple[Any, ...], ...]


def vectors(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(0, 150, (2, 5), generator=torch.Generator().manual_seed(seed))


X, Y = vectors(1, 3, WIDTH), vectors(2, 3, WIDTH)
IMAGE = vectors(5, 1, 64, 6, 6)
SEQUENCE, OTHER = vectors(3, 2, 5, WIDTH), vectors(4, 2, 5, WIDTH)

CASES: dict[str, Case] = {
    "shared blocks": Case(Shared, ((X,), (Y,), (X,))),
    "tied table and head": Case(Tied, ((tokens(1),), (tokens(2),), (tokens(3),))),
    "tied parameters": Case(TiedParameters, ((X,), (Y,), (X,))),
    "branches": Case(Branching, ((X, 0), (X, 1), (Y, 2), (X, 3), (X, 4), (X, 0), (X, 2), (X, 2), (X, 1), (Y, 0))),
    "branches by value": Case(ByValue, ((X,), (-X,), (Y,), (-Y,), (X,))),
    "early exit": Case(EarlyExit, ((X, 6), (X, 2), (Y, 2), (X, 4), (X, 6), (X, 0), (Y, 6))),
    "a layer that calls itself": Case(Recursive, ((X, 2), (X, 1), (X, 0), (Y, 2), (X, 1), (X, 1))),
    "weights around children": Case(Nest, ((X, False), (X, True), (X, True), (Y, False))),
    "nested where they were in line": Case(
        Swapping, ((X,), (X, "abc"), (X, "cba"), (Y, "aa"), (X, "cba"), (X, "abc"), (Y,))
    ),
    "one weight in two places, nested": Case(
        TiedSwapping, ((X,), (X, "abc"), (X, "cba"), (Y, "aa"), (X, "cba"), (X, "abc"), (Y,))
    ),
    "recurrent layers off the trace": Case(
        SometimesRecurrent, ((X, False), (X, True), (Y, True), (Y, False), (X, True))
    ),
    "attention by value": Case(AttentionByValue, ((SEQUENCE,), (OTHER,), (SEQUENCE,))),
    "attention": Case(lambda: Attention(True), ((SEQUENCE,), (OTHER,), (SEQUENCE,))),
    "attention, sequence first": Case(lambda: Attention(False), ((SEQUENCE,), (OTHER,), (SEQUENCE,))),
    "transformer encoder": Case(encoder, ((SEQUENCE,), (OTHER,), (SEQUENCE,))),
    "weights of others": Case(Functional, ((X,), (Y,), (X,))),
    "LSTM": Case(lambda: Recurrent(nn.LSTM), ((SEQUENCE,), (OTHER,), (SEQUENCE,))),
    "GRU": Case(lambda: Recurrent(nn.GRU), ((SEQUENCE,), (OTHER,), (SEQUENCE,))),
    "weight norm": Case(parametrized, ((X,), (Y,), (X,))),
    "containers": Case(Containers, ((X, "left"), (X, "right"), (Y, "left"))),
    "views that outlive their call": Case(Views, ((X, True), (X, False), (Y, False), (X, True))),
    "weights as results": Case(GivesWeights, ((X,), (Y,), (X,))),
    "state between calls": Case(Stateful, ((X,), (Y,), (X,))),
    "noise": Case(Noisy, ((X,), (Y,), (X,))),
    "bag of embeddings": Case(Bag, ((tokens(1),), (tokens(2),), (tokens(3),))),
    "channels last": Case(channels_last, ((IMAGE,), (IMAGE.to(memory_format=torch.channels_last),), (IMAGE,))),
    "transposed weights": Case(Transposed, ((X,), (Y,), (X[:1],))),
    "other shapes": Case(lambda: nn.Sequential(Block(), Block(), Block()), ((X,), (X[:1],), (SEQUENCE,), (X,))),
    "half precision": Case(
        lambda: nn.Sequential(Block(), Block(), Block()).bfloat16(), ((X.bfloat16(),), (Y.bfloat16(),), (X.bfloat16(),))
    ),
}
