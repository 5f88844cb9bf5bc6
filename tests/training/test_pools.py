"""The simulated allocators: each rule on cases worked by hand, and what holds for all lifetimes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.training.lifetimes import Lifetimes

sys.path.insert(0, str(Path(__file__).parents[2]))  # `benchmarks` is not installed

from benchmarks.pools import Placed, caching_footprint, caching_places, cnmem_footprint, cnmem_places

KIB, MIB = 1 << 10, 1 << 20
Places = Callable[..., Iterator[Placed]]
both = pytest.mark.parametrize("places", [cnmem_places, caching_places])


def lifetimes(*blocks: tuple[float, int, int], period: int = 100) -> Lifetimes:
    """Of blocks with bytes, first moment and the one after the last."""
    nbytes, lower, upper = np.array(blocks, dtype=np.int64).reshape(-1, 3).T
    return Lifetimes(nbytes, lower, upper, np.array([0, period], dtype=np.int64), period, 0, 0)


def addresses(places: Iterator[Placed]) -> list[int]:
    return [place.address for place in places]


# -- both --


@both
def test_sizes_are_rounded_to_512_bytes(places: Places) -> None:
    item = lifetimes((1, 0, 9), (513, 1, 9), (1024, 2, 9))
    assert [(p.address, p.nbytes) for p in places(item, iterations=1)] == [(0, 512), (512, 1024), (1536, 1024)]


@both
def test_the_smallest_free_block_that_fits_is_split(places: Places) -> None:
    begin = [(100 * KIB, 0, 10), (512, 0, 90), (40 * KIB, 0, 10), (512, 0, 90), (60 * KIB, 0, 10), (512, 0, 90)]
    item = lifetimes(*begin, (50 * KIB, 20, 90), (8 * KIB, 20, 90))
    found = addresses(places(item, iterations=1))
    assert found[6] == found[4]  # not where 100 KiB are free, which are lower, nor where 40 are
    assert found[7] == found[4] + 50 * KIB  # what was left of it is the smallest again


@both
def test_the_lowest_of_free_blocks_of_one_size_is_taken(places: Places) -> None:
    item = lifetimes((4 * KIB, 0, 10), (512, 0, 90), (4 * KIB, 0, 9), (512, 0, 90), (4 * KIB, 20, 90))
    found = addresses(places(item, iterations=1))
    assert found[4] == found[0]


@both
@pytest.mark.parametrize("ends", [(10, 11, 12), (12, 11, 10), (10, 12, 11), (11, 10, 12)])
def test_free_neighbours_are_one_block(places: Places, ends: tuple[int, int, int]) -> None:
    apart = [(4 * KIB, 0, end) for end in ends]
    item = lifetimes(*apart, (512, 0, 90), (12 * KIB, 20, 90))
    assert addresses(places(item, iterations=1, **({"first_nbytes": MIB} if places is cnmem_places else {})))[4] == 0


@both
def test_what_ends_at_a_moment_makes_room_for_what_begins(places: Places) -> None:
    assert addresses(places(lifetimes((512, 0, 5), (512, 5, 9)), iterations=1)) == [0, 0]


@both
def test_a_block_that_wraps_meets_the_next_iteration(places: Places) -> None:
    item = lifetimes((512, 0, 5), (512, 9, 13), period=10)
    assert [(p.block, p.lower, p.upper, p.address) for p in places(item, iterations=2)] == [
        (0, 0, 5, 0), (1, 9, 13, 0), (0, 10, 15, 512), (1, 19, 23, 0),
    ]  # fmt: skip


@both
def test_what_lives_on_or_is_empty_has_no_place(places: Places) -> None:
    assert [p.block for p in places(lifetimes((512, 3, 3), (0, 1, 5), (512, 2, 4)), iterations=1)] == [2]


def test_without_blocks_nothing_is_reserved() -> None:
    assert cnmem_footprint(lifetimes()) == caching_footprint(lifetimes()) == 0


# -- CnMem --


@pytest.mark.parametrize("ends", [(10, 11), (11, 10)])
def test_cnmem_grows_by_what_it_lacks_and_joins_nothing_across_segments(ends: tuple[int, int]) -> None:
    item = lifetimes((3000, 0, ends[0]), (3000, 0, ends[1]), (6144, 20, 30))
    assert cnmem_footprint(item, iterations=1) == 2 * 3072 + 6144


def test_cnmem_splits_what_it_has_grown_by() -> None:
    assert cnmem_footprint(lifetimes((6144, 0, 10), (3000, 20, 30), (3000, 20, 30))) == 6144


def test_in_the_first_segment_of_cnmem_neighbours_are_joined_and_it_counts_as_far_as_it_is_used() -> None:
    item = lifetimes((3000, 0, 10), (3000, 0, 10), (6144, 20, 30))
    assert cnmem_footprint(item, first_nbytes=MIB) == 6144
    assert cnmem_footprint(item, first_nbytes=4000) == 4096 + 3072 + 6144  # once it grows, all of it counts


# -- torch's for CUDA --


@pytest.mark.parametrize(
    ("nbytes", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (33 * MIB, 34 * MIB),
    ],
)
def test_a_segment_is_as_large_as_its_first_block_asks_for(nbytes: int, reserved: int) -> None:
    assert caching_footprint(lifetimes((nbytes, 0, 5))) == reserved


def test_small_blocks_share_a_segment_to_the_last_512_bytes() -> None:
    full = [(MIB - 512, 0, 5), (MIB, 0, 5), (512, 0, 5)]
    assert caching_footprint(lifetimes(*full)) == 2 * MIB
    assert caching_footprint(lifetimes(*full, (1, 0, 5))) == 4 * MIB


def test_small_and_large_blocks_share_none() -> None:
    assert caching_footprint(lifetimes((5 * MIB, 0, 5), (MIB, 0, 5))) == 22 * MIB
    assert caching_footprint(lifetimes((5 * MIB, 0, 5), (MIB, 5, 9))) == 22 * MIB


def test_a_large_block_keeps_a_rest_of_up_to_one_mib() -> None:
    next_to = (MIB + 512, 0, 5)
    kept = list(caching_places(lifetimes((13 * MIB, 0, 5), next_to), iterations=1))
    assert (kept[0].nbytes, kept[1].address) == (14 * MIB, 14 * MIB)
    split = list(caching_places(lifetimes((13 * MIB - 512, 0, 5), next_to), iterations=1))
    assert (split[0].nbytes, split[1].address) == (13 * MIB - 512, 13 * MIB - 512)


def test_large_blocks_share_a_segment() -> None:
    places = caching_places(lifetimes((9 * MIB, 0, 5), (9 * MIB, 0, 5), (2 * MIB, 0, 5)), iterations=1)
    assert addresses(places) == [0, 9 * MIB, 18 * MIB]


def test_a_block_of_more_than_10_mib_takes_what_is_free_before_a_segment_of_its_own() -> None:
    assert caching_footprint(lifetimes((5 * MIB, 0, 5), (20 * MIB, 5, 9))) == 20 * MIB


# -- whatever the lifetimes --


@st.composite
def recorded(draw: st.DrawFn) -> Lifetimes:
    """Few blocks of all classes of sizes; some wrap, some live as long as the period, some on."""
    period = draw(st.integers(1, 12))
    blocks = []
    for _ in range(draw(st.integers(1, 14))):
        lower = draw(st.integers(0, period - 1))
        nbytes = draw(st.sampled_from([1, 4 * KIB, MIB - 700, MIB, MIB + 1, 3 * MIB, 9 * MIB, 10 * MIB, 23 * MIB]))
        blocks.append((nbytes + draw(st.integers(0, 2000)), lower, lower + draw(st.integers(0, period))))
    return lifetimes(*blocks, period=period)


def load(item: Lifetimes) -> int:
    """The most bytes at one moment, sizes rounded, by counting."""
    sizes = -(-item.nbytes // 512) * 512
    moments = [{m % item.period for m in range(*ends)} for ends in zip(item.lower, item.upper, strict=True)]
    return max(int(sizes[[moment in lives for lives in moments]].sum()) for moment in range(item.period))


@both
@given(item=recorded())
def test_no_two_live_blocks_overlap_and_each_has_what_it_asked_for(places: Places, item: Lifetimes) -> None:
    found = list(places(item, iterations=3))
    assert len(found) == 3 * int((item.upper > item.lower).sum())
    for index, one in enumerate(found):
        assert one.nbytes >= item.nbytes[one.block]
        for other in found[:index]:
            meet = one.lower < other.upper and other.lower < one.upper
            assert not meet or one.end <= other.address or other.end <= one.address


@given(item=recorded(), first_nbytes=st.sampled_from([0, 5 * MIB, 1 << 40]))
def test_no_footprint_is_below_the_load_or_what_is_placed(item: Lifetimes, first_nbytes: int) -> None:
    assert cnmem_footprint(item, first_nbytes=first_nbytes) >= load(item)
    assert caching_footprint(item) >= max([load(item), *(place.end for place in caching_places(item))])
