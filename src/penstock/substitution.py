"""Names of other libraries' modules, replaced for one thread and a while.

A library's loader opens files by a name in its own module. To feed it something else without copying its code, that
name is replaced while a loading runs; other threads that call it meanwhile still get the original.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

Substitute = tuple[ModuleType, str, Callable[..., Any]]
"""Where, which name, and the replacement, which is called as `replacement(original, *args, **kwargs)`."""

_lock = threading.Lock()
_local = threading.local()
_installed: dict[tuple[ModuleType, str], tuple[int, Any, Callable[..., Any]]] = {}


@contextmanager
def substituted(substitutes: Sequence[Substitute]) -> Iterator[None]:
    """Replace names for calls from this thread; every name is put back when the last thread that did so leaves."""
    outer = getattr(_local, "active", {})
    _local.active = {**outer, **{(module, name): replacement for module, name, replacement in substitutes}}
    installed = []
    try:
        for module, name, _ in substitutes:
            _install((module, name))
            installed.append((module, name))
        yield
    finally:
        _local.active = outer
        for key in installed:
            _uninstall(key)


def _install(key: tuple[ModuleType, str]) -> None:
    with _lock:
        if key in _installed:
            count, original, door = _installed[key]
            _installed[key] = (count + 1, original, door)
            return
        original = getattr(*key)

        def door(*args: Any, **kwargs: Any) -> Any:
            replacement = getattr(_local, "active", {}).get(key)
            return replacement(original, *args, **kwargs) if replacement else original(*args, **kwargs)

        _installed[key] = (1, original, door)
        setattr(*key, door)


def _uninstall(key: tuple[ModuleType, str]) -> None:
    with _lock:
        count, original, door = _installed.pop(key)
        if count > 1:
            _installed[key] = (count - 1, original, door)
        elif (
            getattr(*key) is door
        ):  # someone else may have replaced it since: then theirs stays, and ours passes through
            setattr(*key, original)
