"""When a call is known to need no more than another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.signature import Signature, map_tensors


def of(*args: Any, **kwargs: Any) -> Signature:
    return Signature.of(args, kwargs)


class SomeCache:
    """Carries tensors from call to call, as transformers' caches do."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.layers = [SimpleNamespace(), list(tensors)]
        self.keys = tensors[0]


def test_equal_shapes_have_equal_signatures_whatever_the_values() -> None:
    assert of(torch.zeros(2, 3), mask=None) == of(torch.ones(2, 3), mask=None)
    assert of(torch.zeros(2, 3)).digest == of(torch.ones(2, 3)).digest


@pytest.mark.parametrize(
    "other",
    [
        of(torch.zeros(3, 3)),
        of(torch.zeros(2, 3, dtype=torch.float16)),
        of(torch.zeros(2, 3), torch.zeros(1)),
        of(x=torch.zeros(2, 3)),
        of(torch.zeros(2, 3), use_cache=True),
        of(torch.zeros(2, 3), "mode"),
        of([torch.zeros(2, 3)]),
        of(torch.zeros(2, 3), keep=0),
    ],
)
def test_what_decides_on_memory_is_part_of_it(other: Signature) -> None:
    assert other != of(torch.zeros(2, 3))
    assert other.digest != of(torch.zeros(2, 3)).digest


def test_zero_one_and_several_are_told_apart_and_larger_numbers_are_not() -> None:
    assert len({of(keep=0), of(keep=1), of(keep=2)}) == 3
    assert of(step=2) == of(step=999)


def test_tensors_in_caches_and_containers_count() -> None:
    small, large = SomeCache(torch.zeros(2, 4)), SomeCache(torch.zeros(2, 5))
    assert of(small) != of(large)
    assert of({"a": [small]}).nbytes > 0


def test_a_call_that_is_smaller_everywhere_is_covered() -> None:
    known = of(torch.zeros(4, 16), mask=torch.zeros(4, 16))
    assert known.growth_to(of(torch.zeros(4, 16), mask=torch.zeros(4, 16))) == 1.0
    assert known.growth_to(of(torch.zeros(2, 9), mask=torch.zeros(2, 9))) == 1.0


def test_growth_is_the_square_of_each_dimension_that_grew() -> None:
    known = of(torch.zeros(4, 16), mask=torch.zeros(4, 16))
    assert known.growth_to(of(torch.zeros(4, 32), mask=torch.zeros(4, 32))) == 4.0
    assert known.growth_to(of(torch.zeros(8, 32), mask=torch.zeros(8, 32))) == 16.0


@pytest.mark.parametrize(
    "other",
    [of(torch.zeros(1, 16)), of(torch.zeros(4, 16, 1)), of(torch.zeros(4, 16), flag=True)],
)
def test_calls_that_go_another_way_tell_nothing_of_one_another(other: Signature) -> None:
    assert of(torch.zeros(4, 16)).growth_to(other) is None


@given(st.lists(st.integers(2, 40), min_size=2, max_size=2), st.lists(st.integers(2, 40), min_size=2, max_size=2))
def test_attention_never_needs_more_than_growth_says(small: list[int], large: list[int]) -> None:
    growth = of(torch.empty(small)).growth_to(of(torch.empty(large)))
    assert growth is not None
    batch, length = small
    scores = batch * length * length
    assert large[0] * large[1] ** 2 <= scores * growth * (1 + 1e-9)


def test_map_tensors_copies_containers_and_leaves_the_rest() -> None:
    cache, other = SomeCache(torch.zeros(2)), object()
    value = ([torch.zeros(1), other], {"a": (torch.zeros(2), 3)}, cache)
    changed = map_tensors(value, lambda tensor: tensor + 1)
    assert changed[0][0].item() == 1
    assert changed[0][1] is other
    assert changed[1]["a"][1] == 3
    assert changed[2] is not cache
    assert changed[2].keys.tolist() == [1, 1]
    assert cache.keys.tolist() == [0, 0]
    assert type(changed[2]) is SomeCache
