"""The period of an iteration, found without a marker."""

from __future__ import annotations

from penstock.training.period import find_period


def found(text: str, *, is_marked: bool = False) -> int | None:
    """Small letters save, capital ones take back, digits do neither."""
    return find_period(text, [1 if c.islower() else -1 if c.isupper() else 0 for c in text], is_marked=is_marked)


def test_two_iterations_that_are_alike_are_found() -> None:
    assert found("abBA1abBA1") == 5


def test_what_differs_before_them_does_not_matter() -> None:
    assert found("xabBAX00abBA1abBA1") == 5


def test_one_is_not_enough() -> None:
    assert found("abBA1") is None
    assert found("") is None


def test_layers_that_repeat_within_an_iteration_are_none() -> None:
    assert found("aaaaAAAA1aaaa") is None
    assert found("ababab") is None
    assert found("aabbBBAA") is None


def test_optimizers_that_repeat_are_none() -> None:
    assert found("abBA1111") is None


def test_the_smallest_counts() -> None:
    assert found("abBA1" * 6) == 5


def test_gradient_accumulation_is_one_iteration() -> None:
    assert found("aAaAaA1" * 2) == 7


def test_with_a_marker_at_the_end_it_need_not_be_balanced() -> None:
    assert found("abA1abA1") is None
    assert found("abA1abA1", is_marked=True) == 4
    assert found("abA11abA11", is_marked=True) == 5
