"""The public names: adding or losing one is a decision."""

from __future__ import annotations

import inspect

import penstock
from penstock import errors

EXPORTED = [
    "AutoSwap",
    "Budget",
    "BudgetError",
    "BudgetInfeasibleError",
    "CheckpointError",
    "CheckpointMismatchError",
    "Curve",
    "PenstockError",
    "Plan",
    "PlanError",
    "StorageError",
    "Stream",
    "StreamStateError",
    "UnsupportedModelError",
    "autoswap",
    "from_pretrained",
    "inspect",
    "plan",
    "restore",
    "stream",
    "sweep",
]


def test_exactly_these_names_are_public() -> None:
    assert sorted(penstock.__all__) == EXPORTED
    public = {
        name for name, value in vars(penstock).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public - {"annotations"} == set(EXPORTED)


def test_every_error_is_public_and_in_one_tree() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree <= set(EXPORTED)
    assert all(issubclass(getattr(penstock, name), penstock.PenstockError) for name in tree)


def test_the_arguments_of_the_public_calls_are_what_the_documentation_says() -> None:
    objectives = ["max_overhead", "least_memory", "exact", "lam", "peak_nbytes", "time_limit_seconds"]
    shared = ["budget", "device", "example", "strategy", *objectives]
    assert list(inspect.signature(penstock.stream).parameters) == ["module", "checkpoint", *shared, "offload_folder"]
    assert list(inspect.signature(penstock.from_pretrained).parameters) == ["cls", "path", *shared, "same"]
    assert sorted(inspect.signature(penstock.plan).parameters) == sorted(["module", "checkpoint", *shared])
    sweep = ["module", "checkpoint", "example", "budgets", "strategies", "device"]
    assert list(inspect.signature(penstock.sweep).parameters) == sweep


def test_every_public_thing_says_what_it_is() -> None:
    assert all(inspect.getdoc(getattr(penstock, name)) for name in EXPORTED)
