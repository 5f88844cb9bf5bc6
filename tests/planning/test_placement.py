"""Addresses for buffers with lifetimes: against a brute-force oracle, and on public hard instances."""

from __future__ import annotations

import ast
import builtins
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import PlanError
from penstock.planning import placement_check
from penstock.planning.placement import Placement, place
from penstock.planning.placement_beam import Beam, Tuning
from penstock.planning.placement_buffers import Buffers, Ints, checked
from penstock.planning.placement_check import check_placement
from penstock.planning.placement_heuristics import as_allocated, by_size_and_lifetime, smartpool
from penstock.planning.placement_lattice import Lattice
from penstock.planning.placement_parts import split
from penstock.planning.placement_search import PartSearch, settled

INSTANCES = Path(__file__).parents[3] / "shared" / "data" / "minimalloc"
LOADS = {"A": 1048576, "B": 1048576, "C": 1039360, "D": 986112, "E": 1048576, "F": 1048576}
needs_instances = pytest.mark.skipif(not INSTANCES.is_dir(), reason=f"hard instances are not at {INSTANCES}")


@st.composite
def buffers(draw: st.DrawFn, most: int = 9) -> Buffers:
    """Few buffers, with a period or without; some lifetimes wrap, some are as long as the period."""
    period = draw(st.one_of(st.none(), st.integers(1, 9)))
    count = draw(st.integers(1, most))
    lower = [draw(st.integers(0, (period or 9) - 1)) for _ in range(count)]
    upper = [begin + draw(st.integers(1, period or 9)) for begin in lower]
    size = [draw(st.integers(1, 6)) * 4 for _ in range(count)]
    return checked(*(np.array(values) for values in (lower, upper, size)), period)


def lives(item: Buffers, index: int) -> set[int]:
    """The moments at which a buffer lives, one by one."""
    moments = range(int(item.lower[index]), int(item.upper[index]))
    return {moment % item.period if item.period else moment for moment in moments}


def load_of(item: Buffers) -> int:
    """The most bytes at one moment, by counting."""
    moments = [lives(item, index) for index in range(len(item))]
    return max(
        sum(int(item.size[index]) for index in range(len(item)) if moment in moments[index])
        for moment in set().union(*moments)
    )


def least_height(item: Buffers) -> int:
    """The least height there is: the best of stacking the buffers in every order, each above those that it meets."""
    moments = [lives(item, index) for index in range(len(item))]
    best = int(item.size.sum())
    for order in itertools.permutations(range(len(item))):
        tops: dict[int, int] = {}
        for index in order:
            top = max(tops.get(moment, 0) for moment in moments[index]) + int(item.size[index])
            tops.update(dict.fromkeys(moments[index], top))
        best = min(best, max(tops.values()))
    return best


def arrays(*rows: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    lower, upper, size = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return lower, upper, size


def instance(name: str) -> tuple[Any, Any, Any]:
    (file,) = INSTANCES.glob(f"{name}.*.csv")
    table = np.loadtxt(file, delimiter=",", skiprows=1, usecols=(1, 2, 3), dtype=np.int64)
    return table[:, 0], table[:, 1], table[:, 2]


@settings(deadline=None, max_examples=60)
@given(buffers(most=6))
def test_few_buffers_are_placed_as_low_as_trying_every_order_places_them(item: Buffers) -> None:
    placed = place(item.lower, item.upper, item.size, period=item.period, seconds=0.3)
    assert placed.load == load_of(item)
    least = least_height(item)
    assert placed.height == least
    if placed.height == placed.load:
        assert placed.proved_optimal


@settings(deadline=None, max_examples=90)
@given(buffers(), st.sampled_from([smartpool, as_allocated, lambda item: list(by_size_and_lifetime(item))[-1]]))
def test_what_is_placed_at_once_and_what_falls_from_it_are_placements(
    item: Buffers, heuristic: Callable[[Buffers], Ints]
) -> None:
    offsets = heuristic(item)
    check_placement(item.lower, item.upper, item.size, offsets, int((offsets + item.size).max()), item.period)
    fallen = offsets.copy()
    for part in split(item):
        fallen[part.indices] = settled(part, offsets[part.indices] // part.unit) * part.unit
    height = int((fallen + item.size).max())
    check_placement(item.lower, item.upper, item.size, fallen, height, item.period)
    assert height <= int((offsets + item.size).max())


@settings(deadline=None, max_examples=90)
@given(buffers(most=12))
def test_parts_share_no_moment_and_keep_who_meets_whom(item: Buffers) -> None:
    parts = split(item)
    assert sorted(index for part in parts for index in part.indices.tolist()) == list(range(len(item)))
    assert max(part.least * part.unit for part in parts) == load_of(item)
    number = {index: (part, row) for part in parts for row, index in enumerate(part.indices.tolist())}
    for one, other in itertools.combinations(range(len(item)), 2):
        (part, row), (second, column) = number[one], number[other]
        covers = [
            {moment % which.moments for moment in range(int(which.first[at]), int(which.past[at]))}
            for which, at in ((part, row), (second, column))
        ]
        together = part is second and bool(covers[0] & covers[1])
        assert together == bool(lives(item, one) & lives(item, other))


@settings(deadline=None, max_examples=60)
@given(buffers(most=12), st.randoms(use_true_random=False))
def test_tables_by_powers_of_two_say_what_going_through_lifetimes_says(item: Buffers, random: Any) -> None:
    for part in split(item):
        lattice = Lattice(part, np.arange(len(part.size)))
        rows, moments = range(len(lattice.order)), range(part.moments)
        heights = np.array([[random.randrange(99) for _ in range(2)] for _ in moments])
        offsets = np.array([[random.randrange(lattice.infinite) for _ in range(2)] for _ in rows])
        highest, lowest = lattice.highest(heights), lattice.lowest(offsets)
        for row in rows:
            lived = [moment % part.moments for moment in range(int(lattice.first[row]), int(lattice.past[row]))]
            assert (highest[row] == heights[lived].max(axis=0)).all()
        for moment in moments:
            assert (lowest[moment] == offsets[lattice.covers[moment]].min(axis=0)).all()


@settings(deadline=None, max_examples=60)
@given(buffers(), st.integers(0, 3), st.integers(1, 9))
def test_a_beam_with_enough_room_places_all_between_what_is_below_and_above(
    item: Buffers, seed: int, taken: int
) -> None:
    for part in split(item):
        random = np.random.default_rng(seed)
        lattice = Lattice(part, np.arange(len(part.size)))
        below, above = random.integers(0, taken, (2, part.moments))
        limit = int(part.size.sum()) + 2 * taken
        found = Beam(lattice, Tuning(4, 0.1, 0.1, 0.05, 0.1, 0.2), limit, random).search(below, above, float("inf"))
        assert found is not None
        for row, covers in enumerate(lattice.covers.T):
            assert below[covers].max() <= found[row]
            assert found[row] + part.size[lattice.order[row]] + above[covers].max() <= limit
        lifetimes = part.first[lattice.order], part.past[lattice.order], part.size[lattice.order]
        check_placement(*lifetimes, found, limit, part.moments)


def test_what_floats_settles() -> None:
    (part,) = split(checked(*arrays((0, 2, 1), (1, 3, 1), (2, 4, 1))))
    assert settled(part, np.array([9, 4, 7])).tolist() == [1, 0, 1]


def test_what_is_worse_is_gone_on_from_and_not_kept() -> None:
    (part,) = split(checked(*arrays((0, 2, 1), (1, 3, 1))))
    search = PartSearch(part, np.array([0, 1]))
    search.take(np.array([0, 5]))
    assert (search.offsets.tolist(), search.height) == ([0, 1], 2)


@settings(deadline=None, max_examples=60)
@given(buffers(), st.integers(0, 3))
def test_beams_never_end_higher_than_before_and_do_the_same_again(item: Buffers, seed: int) -> None:
    stacked = np.cumsum(item.size) - item.size  # one above the other
    offsets = stacked.copy()
    for part in split(item):
        found = []
        for _ in range(2):
            search = PartSearch(part, stacked[part.indices] // part.unit, seed)
            for _ in range(4):
                before = search.height
                search.improve(float("inf"))
                assert search.height <= before
            found.append(search.offsets.tolist())
        assert found[0] == found[1]
        offsets[part.indices] = search.offsets * part.unit
    check_placement(item.lower, item.upper, item.size, offsets, int((offsets + item.size).max()), item.period)


def test_nothing_to_place_takes_no_height() -> None:
    placed = place(*arrays())
    assert (placed.offsets.tolist(), placed.height, placed.load, placed.proved_optimal) == ([], 0, 0, True)
    assert placed.ratio == 1.0


def test_what_lives_across_the_end_of_a_pass_meets_both_ends() -> None:
    lower, upper, size = arrays((8, 12, 5), (0, 2, 3), (2, 8, 7), (9, 10, 4))
    cyclic = place(lower, upper, size, period=10)
    assert cyclic.height == cyclic.load == 9
    assert abs(int(cyclic.offsets[0]) - int(cyclic.offsets[1])) >= 3
    once = place(lower, np.minimum(upper, 10), size)
    assert once.offsets[0] == once.offsets[1] == 0 or once.height == 9


def test_a_lifetime_of_a_whole_period_meets_every_buffer() -> None:
    placed = place(*arrays((3, 13, 5), (0, 1, 3), (5, 6, 4)), period=10)
    assert placed.height == placed.load == 9
    with pytest.raises(PlanError, match=r"upper\[0\] is 14"):
        place(*arrays((3, 14, 5)), period=10)


def test_a_circle_may_need_more_than_its_load() -> None:
    # Three of which any two meet, each elsewhere: the load is two of them, no placement is lower than three.
    placed = place(*arrays((0, 2, 8), (1, 3, 8), (2, 4, 8)), period=3, seconds=2)
    assert (placed.height, placed.load) == (24, 16)


def test_a_proof_of_the_solver_is_told() -> None:
    pytest.importorskip("ortools", reason="proofs above the load are CP-SAT's")
    placed = place(*arrays((0, 2, 8), (1, 3, 8), (2, 4, 8)), period=3, seconds=5)
    assert placed.proved_optimal
    assert placed.height > placed.load


def test_without_the_solver_all_works_and_nothing_above_the_load_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("ortools"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    placed = place(*arrays((0, 2, 8), (1, 3, 8), (2, 4, 8)), period=3, seconds=0.2)
    assert (placed.height, placed.load, placed.proved_optimal) == (24, 16, False)


def test_the_same_question_has_the_same_answer() -> None:
    random = np.random.default_rng(5)
    lower = random.integers(0, 30, 40)
    question = lower, lower + random.integers(1, 12, 40), random.integers(1, 20, 40)
    first, second = place(*question), place(*question)
    assert first.proved_optimal  # so time has not cut it short
    assert first.offsets.tolist() == second.offsets.tolist()


def test_far_and_negative_moments_and_large_sizes_are_placed() -> None:
    largest = np.iinfo(np.int64).max
    placed = place(*arrays((-largest, largest, 1 << 61), (0, 1, 1 << 60), (1, largest, 3 << 59)))
    assert placed.height == placed.load == (1 << 61) + (3 << 59)
    huge = np.array([1 << 60, (1 << 60) + 1, (1 << 60) + 3])
    assert place(*arrays((0, 2, 1), (1, 3, 1), (2, 4, 1))[:2], huge, period=3, seconds=0.2).height == sum(huge.tolist())


def test_unsigned_and_narrow_integers_are_taken() -> None:
    lower, upper, size = arrays((0, 2, 200), (1, 3, 100))
    placed = place(lower.astype(np.uint8), upper.astype(np.int16), size.astype(np.uint64))
    assert placed.height == 300


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lower": np.array([0])}, r"lengths differ \(lower 1, upper 2, size 2\)"),
        ({"lower": np.array([0.0, 1.0])}, "lower is of 1 dimensions and float64"),
        ({"upper": np.array([True, True])}, "upper is of 1 dimensions and bool"),
        ({"size": np.array([[1, 2]])}, "size is of 2 dimensions and int64"),
        ({"size": np.array(["a", "b"])}, "size is of 1 dimensions and <U1"),
        ({"size": np.array([1, 2**63], dtype=np.uint64)}, "size has 9223372036854775808"),
        ({"size": np.array([2**62, 2**62])}, "size adds up to 9223372036854775808"),
        ({"size": np.array([1, 0])}, r"size\[1\] is 0.*leave out buffers without bytes"),
        ({"size": np.array([-1, 1])}, r"size\[0\] is -1"),
        ({"upper": np.array([2, 1])}, r"upper\[1\] is 1, not above its lower"),
        ({"period": 0}, "period is 0"),
        ({"period": 2.0}, "period is 2.0"),
        ({"period": True}, "period is True"),
        ({"period": 2**63}, "period is 9223372036854775808"),
        ({"period": 1}, r"lower\[1\] is 1, outside 0 to 0"),
        ({"lower": np.array([-1, 1]), "period": 5}, r"lower\[0\] is -1, outside 0 to 4"),
        ({"upper": np.array([9, 2]), "period": 5}, r"upper\[0\] is 9, more than the period of 5"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": -1.0}, r"seconds is -1\.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"seconds": True}, "seconds is True"),
        ({"seconds": "long"}, "seconds is 'long'"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any], named: str) -> None:
    given_ = {"lower": np.array([0, 1]), "upper": np.array([2, 3]), "size": np.array([4, 5]), **changed}
    with pytest.raises(PlanError, match=named):
        place(**given_)


def test_what_ends_in_the_opposite_order_is_placed_as_it_is_allocated() -> None:
    item = checked(*arrays((0, 9, 4), (1, 8, 2), (2, 4, 3), (5, 7, 3)))
    assert as_allocated(item).tolist() == [0, 4, 6, 6]
    wrapping = checked(*arrays((0, 2, 4), (3, 5, 2)), period=4)  # the second lives on into the next pass
    assert as_allocated(wrapping).tolist() == [2, 0]


def test_many_buffers_lie_no_higher_than_where_any_heuristic_puts_them() -> None:
    chance = np.random.default_rng(1)
    lower, size = chance.integers(0, 900, 700), chance.choice([2, 3, 4, 8, 40], 700)
    item = Buffers(lower, lower + chance.integers(1, 300, 700), size, 900)
    heights = [int((offsets + size).max()) for offsets in (smartpool(item), as_allocated(item))]
    mixed = [int((offsets + size).max()) for offsets in by_size_and_lifetime(item)]
    assert min(mixed) < min(heights)
    assert place(item.lower, item.upper, size, period=900, seconds=0.01, solver=False).height <= min(mixed)


def test_smartpool_places_the_largest_first_and_the_others_where_they_fit_best() -> None:
    # 9 lies at 0, 6 on it, 5 meets neither; 3 fits above 5 within the gap below 6 better than above all.
    item = checked(*arrays((0, 4, 9), (2, 6, 6), (4, 8, 5), (4, 6, 3)))
    assert smartpool(item).tolist() == [0, 9, 0, 5]
    # Of two gaps the smaller: 10 and 4 leave 4 of the one, and the 2 goes where nothing is left over.
    tight = checked(*arrays((0, 9, 10), (0, 3, 6), (0, 3, 2), (2, 5, 1)))
    assert smartpool(tight).tolist() == [0, 10, 16, 18]


@needs_instances
@pytest.mark.parametrize("name", LOADS)
def test_smartpool_ends_on_hard_instances_where_its_authors_rule_ends(name: str) -> None:
    item = checked(*instance(name))
    assert 1.3 <= (smartpool(item) + item.size).max() / LOADS[name] <= 1.45


@needs_instances
@pytest.mark.parametrize("name", LOADS)
def test_two_seconds_are_enough_for_a_fair_placement_of_a_hard_instance(name: str) -> None:
    lower, upper, size = instance(name)
    placed = place(lower, upper, size, seconds=2.0)
    assert placed.load == LOADS[name]
    assert placed.ratio <= 1.2
    check_placement(lower, upper, size, placed.offsets, placed.height)


def overlapping(offsets: Sequence[int], height: int, period: int | None = None) -> str:
    with pytest.raises(PlanError) as caught:
        check_placement(*arrays((0, 3, 4), (2, 5, 4), (5, 7, 4), (6, 8, 4)), np.array(offsets), height, period)
    return str(caught.value)


def test_the_checker_names_the_two_that_overlap() -> None:
    assert "buffers 0 and 1 overlap" in overlapping([0, 3, 0, 4], 8)
    assert "buffers 2 and 3 overlap" in overlapping([0, 4, 4, 7], 11)
    check_placement(*arrays((0, 3, 4), (2, 5, 4), (5, 7, 4), (6, 8, 4)), np.array([0, 4, 0, 4]), 8)


def test_the_checker_sees_across_the_end_of_a_pass() -> None:
    assert "buffers 0 and 3 overlap" in overlapping([0, 4, 4, 0], 8, period=7)
    check_placement(*arrays((0, 3, 4), (2, 5, 4), (5, 7, 4), (6, 8, 4)), np.array([0, 4, 0, 4]), 8, 7)
    assert "buffers 0 and 3 overlap" in overlapping([4, 0, 0, 4], 8, period=7)
    with pytest.raises(PlanError, match="buffers 0 and 1 overlap"):
        check_placement(*arrays((6, 8, 4), (0, 3, 4)), np.array([0, 3]), 7, 7)


def test_the_checker_refuses_what_lies_outside_and_what_is_missing() -> None:
    assert "buffer 1 lies at 5 to 9, outside 0 to 8" in overlapping([0, 5, 0, 4], 8)
    assert "buffer 0 lies at -1 to 3" in overlapping([-1, 4, 0, 4], 8)
    assert "3 offsets" in overlapping([0, 4, 0], 8)
    assert "buffer 3 lives from 6 on, outside 0 to 5" in overlapping([0, 4, 0, 4], 8, period=6)
    with pytest.raises(PlanError, match="height is 1 without a buffer"):
        check_placement(*arrays(), np.array([]), 1)


def test_the_checker_is_no_solver() -> None:
    tree = ast.parse(Path(placement_check.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module for module in modules if module and module.startswith("penstock")} == {"penstock.errors"}


def test_what_place_returns_has_gone_through_the_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("penstock.planning.placement.check_placement", lambda *arguments: seen.append(arguments[4]))
    placed: Placement = place(*arrays((0, 2, 4), (1, 3, 4)))
    assert seen == [placed.height]
