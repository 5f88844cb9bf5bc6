"""Plans: from plain numbers to where every weight lies and when it is loaded."""

from penstock.planning.check import check
from penstock.planning.options import PlanOptions
from penstock.planning.plan import Ebb, Load, Plan, Prediction, Slot
from penstock.planning.planner import make_plan
from penstock.planning.problem import Call, Problem, Reserve, Storage, Weight
from penstock.planning.simulate import simulate
from penstock.planning.timeline import PassTimeline, Timeline

__all__ = [
    "Call",
    "Ebb",
    "Load",
    "PassTimeline",
    "Plan",
    "PlanOptions",
    "Prediction",
    "Problem",
    "Reserve",
    "Slot",
    "Storage",
    "Timeline",
    "Weight",
    "check",
    "make_plan",
    "simulate",
]
