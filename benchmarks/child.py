"""The child's half of an arm: `python -m benchmarks.child` answers lines of JSON with lines of JSON. See `arm.py`.

Its baseline is a started interpreter with everything imported and nothing loaded. So that no code page, thread pool or
lazy import of the libraries is charged to the model, it first runs the model's tiny twin the same way, gives back what
that took, and only then enters its memory cgroup: what is charged there is what lies over the baseline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.models import find
from benchmarks.serving import Verbs, serve
from benchmarks.session import Session
from benchmarks.ways import WAYS
from penstock.cgroup import MemoryGroup


def _begin(start: dict[str, Any]) -> Verbs:
    model = find(start["model"], tiny=start["tiny"]).with_batch(start["batch"])
    session = Session(WAYS[start["way"]], model, start["budget_nbytes"])
    if start["warm_up"] == "pass":
        session.warm_up()
    else:
        session.import_everything()
    if start["group"] is not None:
        MemoryGroup(Path(start["group"]["path"]), start["group"]["version"]).enter()
    return {
        "load": session.load,
        "settle": session.settle,
        "run": session.run,
        "burst": session.burst,
        "bandwidth": session.bandwidth,
        "plan": session.plan,
        "predict": session.predict,
        "drop": session.drop,
        "save": session.save,
    }


if __name__ == "__main__":
    serve(_begin)
