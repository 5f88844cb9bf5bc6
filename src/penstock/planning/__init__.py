"""Plans: from plain numbers to where every weight lies and when it is loaded."""

from penstock.planning.plan import Load, Plan, Prediction, Slot
from penstock.planning.problem import Call, Problem, Reserve, Storage, Weight

__all__ = ["Call", "Load", "Plan", "Prediction", "Problem", "Reserve", "Slot", "Storage", "Weight"]
