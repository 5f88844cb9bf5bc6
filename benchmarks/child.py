"""The child's half of an arm: `python -m benchmarks.child` answers lines of JSON with lines of JSON. See `arm.py`.

Its baseline is a started interpreter with everything imported and nothing loaded. So that no code page, thread pool or
lazy import of the libraries is charged to the model, it first runs the model's tiny twin the same way, gives back what
that took, and only then enters its memory cgroup: what is charged there is what lies over the baseline.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from benchmarks.models import find
from benchmarks.session import Session, quiet
from benchmarks.ways import WAYS
from penstock.cgroup import MemoryGroup


def _serve(read: Callable[[], str], write: TextIO) -> None:
    start = json.loads(read())
    model = find(start["model"], tiny=start["tiny"]).with_batch(start["batch"])
    session = Session(WAYS[start["way"]], model, start["budget_nbytes"])
    if start["warm_up"] == "pass":
        session.warm_up()
    else:
        session.import_everything()
    if start["group"] is not None:
        MemoryGroup(Path(start["group"]["path"]), start["group"]["version"]).enter()
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
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
    answer: dict[str, Any] = {}
    while True:
        print(json.dumps(answer), file=write, flush=True)
        line = read()
        if not line:
            return
        question = json.loads(line)
        verb = question.pop("do")
        answer = verbs[verb](**question)


def main() -> None:
    """Serves the parent on the standard streams; what anything else prints goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w") as write:
        os.dup2(2, 1)
        try:
            quiet()
            _serve(sys.stdin.readline, write)
        except Exception as error:  # the parent records it, whatever it is
            traceback.print_exc()
            needed = getattr(error, "needed_nbytes", None)
            reason = f"{type(error).__name__}: {error}"
            print(json.dumps({"error": reason, "needed_nbytes": needed}), file=write, flush=True)


if __name__ == "__main__":
    main()
