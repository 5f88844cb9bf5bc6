"""A recorded iteration of training as a file: what any budget could make of it, without the model at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from penstock.errors import PlanError
from penstock.planning.fields import Fields, as_integer, as_nbytes, as_seconds, as_text, parse_object
from penstock.planning.swap_problem import Absence, Link, SwapProblem

RECORD_VERSION = 1


FIRST_OVERHEAD = 12
"""One part in so many of the budget is for what is beside storages, until an iteration within it was measured."""


def kept_free(budget_nbytes: int, overhead_nbytes: int | None) -> int:
    """What of a budget is for what an iteration takes beside its storages; None: not measured yet."""
    return overhead_nbytes if overhead_nbytes is not None else -(-budget_nbytes // FIRST_OVERHEAD)


@dataclass(frozen=True)
class SwapRecord:
    """An iteration, and what it takes beside its storages.

    Attributes:
        problem: whose limit is its own peak.
        names: what each segment begins with, for people.
        overhead_nbytes: what an iteration takes beside its storages; None where that was not measured yet.
        kinds: bytes of what lives when the most does, by what it is for.
    """

    problem: SwapProblem
    names: tuple[str, ...]
    overhead_nbytes: int | None
    kinds: Mapping[str, int] = field(default_factory=dict)

    def within(self, budget_nbytes: int, gap_nbytes: int = 0) -> SwapProblem:
        """What there is to decide within a budget, of which some is kept free; less where a guess of it is too much.

        What was measured is no guess; gaps between addresses, which come on top of it, are.
        """
        kept_nbytes = kept_free(budget_nbytes, self.overhead_nbytes)
        sure_nbytes, guess_nbytes = (0, kept_nbytes) if self.overhead_nbytes is None else (kept_nbytes, gap_nbytes)
        most_nbytes, least_nbytes = budget_nbytes - sure_nbytes, self.problem.least_nbytes()
        limit_nbytes = most_nbytes - guess_nbytes
        if most_nbytes >= least_nbytes:
            limit_nbytes = max(limit_nbytes, least_nbytes)
        return replace(self.problem, limit_nbytes=limit_nbytes)

    def budget_nbytes(self, limit_nbytes: int) -> int:
        """The smallest budget that leaves so much for storages."""
        if self.overhead_nbytes is not None:
            return limit_nbytes + self.overhead_nbytes
        return limit_nbytes + -(-limit_nbytes // (FIRST_OVERHEAD - 1))

    def to_json(self) -> str:
        """This record as JSON text."""
        problem = self.problem
        return json.dumps(
            {
                "version": RECORD_VERSION,
                "seconds": problem.seconds.tolist(),
                "load_nbytes": problem.load_nbytes.tolist(),
                "absences": [asdict(absence) for absence in problem.absences],
                "recomputable": [asdict(absence) for absence in problem.recomputable],
                "out": asdict(problem.out),
                "back": asdict(problem.back),
                "names": list(self.names),
                "overhead_nbytes": self.overhead_nbytes,
                "kinds": [[kind, nbytes] for kind, nbytes in self.kinds.items()],
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> SwapRecord:
        """The record that `to_json` wrote.

        Raises:
            PlanError: the text is no such record; says what is wrong.
        """
        found = parse_object(text, "record of an iteration")
        found.integer("version", RECORD_VERSION, RECORD_VERSION)
        load = np.array(found.items("load_nbytes", as_nbytes), dtype=np.int64)
        problem = SwapProblem(
            seconds=np.array(found.items("seconds", as_seconds), dtype=np.float64),
            load_nbytes=load,
            absences=found.items("absences", _read_absence),
            out=_read_link(found.record("out")),
            back=_read_link(found.record("back")),
            limit_nbytes=int(load.max(initial=1)),
            recomputable=found.items("recomputable", _read_absence),
        )
        names = found.items("names", lambda value, path: str(value))
        overhead_nbytes = found.optional_integer("overhead_nbytes", 0)
        if len(names) != len(load):
            raise PlanError(f"this record names {len(names)} of {len(load)} segments: make it again")
        kinds = dict(found.items("kinds", _read_kind))
        found.finish()
        return cls(problem, names, overhead_nbytes, kinds)


def _read_absence(value: object, path: str) -> Absence:
    found = Fields(value, path)
    absence = Absence(
        storage=found.integer("storage", 0),
        nbytes=found.integer("nbytes", 1),
        leaves=found.integer("leaves", 0),
        returns=found.integer("returns", 1),
        recompute_seconds=found.optional("recompute_seconds", Fields.seconds),
        sources=found.items("sources", lambda item, at: as_integer(item, at, 0)),
    )
    found.finish()
    return absence


def _read_kind(value: object, path: str) -> tuple[str, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise PlanError(f"{path} is no pair of a name and bytes: make it again")
    return as_text(value[0], path), as_integer(value[1], path, 0)


def _read_link(found: Fields) -> Link:
    link = Link(found.seconds("fixed_seconds"), found.seconds("bytes_per_second"))
    found.finish()
    return link
