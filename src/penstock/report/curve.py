"""The whole trade between memory and delay: what each strategy predicts at each of many budgets, as plain numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from penstock.planning.fields import Fields, as_text, parse_object

CURVE_VERSION = 2
INFERENCE, TRAINING = "inference", "training"
TASKS = {INFERENCE: ("warm pass", "weights"), TRAINING: ("iteration", "whole")}
"""What is timed of each task, and what its budgets are shares of."""


@dataclass(frozen=True, slots=True)
class Point:
    """One strategy at one budget.

    Attributes:
        strategy: its name.
        predicted_seconds: a warm pass, or an iteration; None where the strategy has no plan for the budget.
        lower_bound_seconds: what its plan says that none can beat; None likewise.
        needed_nbytes: the smallest budget for which the strategy has a plan; None where it has one for this.
        measured_seconds: the median of real warm passes, where they were run.
    """

    budget_nbytes: int
    strategy: str
    predicted_seconds: float | None
    lower_bound_seconds: float | None
    needed_nbytes: int | None = None
    measured_seconds: float | None = None


@dataclass(frozen=True)
class Curve:
    """Delay against budget, for several strategies on one problem.

    Attributes:
        model: what it is called.
        full_nbytes: of all weights together; of training, the budget in which nothing has to leave.
        compute_seconds: a pass, or an iteration, that waits for nothing, as if everything were in memory.
        bytes_per_second: of the storage, as planned with.
        is_timed: whether the compute times were measured; else they are estimates, good for comparing only.
        points: every budget, ascending, with every strategy, in the order of the registry.
        remarks: what is missing, and why.
        task: `INFERENCE` or `TRAINING`.
    """

    model: str
    full_nbytes: int
    compute_seconds: float
    bytes_per_second: float
    is_timed: bool
    points: tuple[Point, ...]
    remarks: tuple[str, ...] = ()
    task: str = INFERENCE

    @property
    def timed(self) -> str:
        """What takes these seconds."""
        return TASKS[self.task][0]

    @property
    def whole(self) -> str:
        """What budgets are shares of."""
        return TASKS[self.task][1]

    @property
    def budgets(self) -> tuple[int, ...]:
        """In bytes, ascending."""
        return tuple(sorted({point.budget_nbytes for point in self.points}))

    @property
    def strategies(self) -> tuple[str, ...]:
        """In the order of the points."""
        return tuple(dict.fromkeys(point.strategy for point in self.points))

    def of(self, strategy: str) -> tuple[Point, ...]:
        """The points of one strategy, by budget."""
        return tuple(point for point in self.points if point.strategy == strategy)

    def bound(self) -> tuple[tuple[int, float], ...]:
        """Budget and the seconds below which no plan for it can be, for every budget up to the largest with a plan.

        What fits a budget fits every larger one, so no smaller budget can have a lower bound than a larger one.
        """
        found: list[tuple[int, float]] = []
        least = None
        for budget_nbytes in reversed(self.budgets):
            bounds = [
                point.lower_bound_seconds
                for point in self.points
                if point.budget_nbytes == budget_nbytes and point.lower_bound_seconds is not None
            ]
            if bounds:
                least = max(min(bounds), least or 0.0)
            if least is not None:
                found.append((budget_nbytes, least))
        return tuple(reversed(found))

    def smallest_within(self, overhead: float) -> Point | None:
        """The point of the smallest budget, and there the fastest, at most `overhead` over a pass that never waits."""
        limit = (1 + overhead) * self.compute_seconds
        planned = [(p.budget_nbytes, p.predicted_seconds, p) for p in self.points if p.predicted_seconds is not None]
        good = [entry for entry in planned if entry[1] <= limit]
        return min(good, key=lambda entry: entry[:2])[2] if good else None

    def needs(self) -> dict[str, int]:
        """The least budget, in bytes, of each strategy that has no plan for some of the budgets."""
        found: dict[str, int] = {}
        for point in self.points:
            if point.needed_nbytes is not None:
                found[point.strategy] = point.needed_nbytes
        return found

    def with_measured(self, strategy: str, seconds: dict[int, float], remarks: Sequence[str] = ()) -> Curve:
        """This curve with medians of real passes, by budget in bytes, on the points of `strategy`."""
        points = tuple(
            replace(point, measured_seconds=seconds[point.budget_nbytes])
            if point.strategy == strategy and point.budget_nbytes in seconds
            else point
            for point in self.points
        )
        return replace(self, points=points, remarks=(*self.remarks, *remarks))

    def to_json(self) -> str:
        """This curve as JSON text."""
        return json.dumps({"version": CURVE_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Curve:
        """The curve in `text`, which may come from anywhere.

        Raises:
            PlanError: a field is missing, unknown, of a wrong type or out of range; the message names it.
        """
        fields = parse_object(text, "curve")
        fields.integer("version", CURVE_VERSION, CURVE_VERSION)
        curve = cls(
            model=fields.text("model"),
            full_nbytes=fields.integer("full_nbytes", 0),
            compute_seconds=fields.seconds("compute_seconds"),
            bytes_per_second=fields.seconds("bytes_per_second"),
            is_timed=fields.flag("is_timed"),
            points=fields.items("points", _read_point),
            remarks=fields.items("remarks", as_text),
            task=fields.choice("task", tuple(TASKS)),
        )
        fields.finish()
        return curve


def _read_point(value: object, path: str) -> Point:
    fields = Fields(value, path)
    point = Point(
        budget_nbytes=fields.integer("budget_nbytes", 1),
        strategy=fields.text("strategy"),
        predicted_seconds=fields.optional("predicted_seconds", Fields.seconds),
        lower_bound_seconds=fields.optional("lower_bound_seconds", Fields.seconds),
        needed_nbytes=fields.optional("needed_nbytes", lambda own, name: own.integer(name, 1)),
        measured_seconds=fields.optional("measured_seconds", Fields.seconds),
    )
    fields.finish()
    return point
