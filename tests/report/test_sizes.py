"""Sizes that are shown can be typed; axes have a few readable ticks."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.budget import parse_size
from penstock.report.sizes import readable_nbytes, size_scale, size_text, size_ticks, time_scale, time_text

MIB = 2**20
sizes = st.one_of(st.integers(1, 2**12), st.integers(1, 2**31), st.integers(1, 2**42))


@given(sizes)
def test_a_readable_size_is_at_least_as_large_and_works_as_it_is_shown(nbytes: int) -> None:
    readable = readable_nbytes(nbytes)
    assert nbytes <= readable <= nbytes * 1.11 + 1
    assert parse_size(size_text(readable)) == readable
    assert readable_nbytes(readable) == readable


@given(st.lists(sizes, min_size=2, max_size=2))
@example([1, 2])
def test_ticks_lie_within_the_budgets_and_are_not_many(budgets: list[int]) -> None:
    low, high = sorted(budgets)
    ticks = size_ticks(budgets)
    assert all(low <= tick <= high for tick in ticks)
    assert len(ticks) <= 45
    assert ticks == sorted(set(ticks))


def test_a_narrow_range_has_ticks_too() -> None:
    ticks = size_ticks([430 * MIB, 530 * MIB])
    assert [tick / MIB for tick in ticks] == [440, 460, 480, 500, 520]


@pytest.mark.parametrize(
    ("nbytes", "text"), [(512, "512 B"), (1536, "1.5 KiB"), (3 * MIB, "3.0 MiB"), (300 * MIB, "300 MiB")]
)
def test_sizes_are_shown_in_the_unit_that_suits(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


def test_times_are_shown_in_the_unit_that_suits() -> None:
    assert [time_text(seconds) for seconds in (0.0123, 0.123, 12.34)] == ["12.3 ms", "123 ms", "12.3 s"]
    assert (time_scale(1).unit, time_scale(11).unit) == ("ms", "s")
    assert [size_scale(n).unit for n in (1000, MIB, 2**40)] == ["KiB", "MiB", "GiB"]
