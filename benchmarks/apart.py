"""A process for what is measured within one process, so that its memory and threads are gone before the next."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

from benchmarks.arm import child_environment
from benchmarks.session import quiet

Parameters = ParamSpec("Parameters")
ResultT = TypeVar("ResultT")


def run_apart(call: Callable[Parameters, ResultT], *args: Parameters.args, **kwargs: Parameters.kwargs) -> ResultT:
    """What `call` returns in a new process with an arm's environment."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(child_environment(),)) as pool:
        return pool.submit(call, *args, **kwargs).result()


def _begin(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    quiet()
