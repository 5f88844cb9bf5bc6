"""How a child process of a benchmark answers lines of JSON with lines of JSON on its standard streams."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.session import quiet

Verbs = Mapping[str, Callable[..., dict[str, Any]]]


def serve(begin: Callable[[dict[str, Any]], Verbs]) -> None:
    """Answer until the parent hangs up; what anything else prints goes to standard error.

    Args:
        begin: given the first line, gets ready and says what the `do` of each later line stands for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w") as write:
        os.dup2(2, 1)
        answer: dict[str, Any] = {}
        try:
            quiet()
            verbs = begin(json.loads(sys.stdin.readline()))
            while True:
                print(json.dumps(answer), file=write, flush=True)
                line = sys.stdin.readline()
                if not line:
                    return
                question = json.loads(line)
                verb = question.pop("do")
                answer = verbs[verb](**question)
        except Exception as error:  # the parent records it, whatever it is
            traceback.print_exc()
            needed = getattr(error, "needed_nbytes", None)
            reason = f"{type(error).__name__}: {error}"
            print(json.dumps({"error": reason, "needed_nbytes": needed}), file=write, flush=True)
