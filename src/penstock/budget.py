"""Byte sizes as people write them, and the budget that they name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.errors import BudgetError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([KMGT]?I?B|)\s*", re.IGNORECASE)
_REMEDY = 'give bytes as an int, or a size such as "512MiB" or "2GB"'


def parse_size(value: int | str) -> int:
    """Bytes named by `value`: an int, or a string such as `"512MiB"`, `"1.5GB"` or `"4096"`.

    Raises:
        BudgetError: it is not a size, or not above zero.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BudgetError(f"{value!r} is not a size: {_REMEDY}")
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise BudgetError(f"{value!r} is not a size: {_REMEDY}")
        nbytes = int(float(match[1]) * _UNITS[match[2].upper()])
    else:
        nbytes = value
    if nbytes <= 0:
        raise BudgetError(f"a size of {value!r} is not above zero: {_REMEDY}")
    return nbytes


def format_size(nbytes: int | float) -> str:
    """`nbytes` for people, in binary units: `"128.0 MiB"`."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@dataclass(frozen=True, slots=True)
class Budget:
    """The byte cap on everything that a model needs on its device.

    It holds weights, I/O buffers, bookkeeping and activations together.

    >>> Budget("512MiB")
    Budget('512.0 MiB')
    >>> Budget("2GB").nbytes
    2000000000
    """

    nbytes: int

    def __init__(self, size: int | str | Budget) -> None:
        nbytes = size.nbytes if isinstance(size, Budget) else parse_size(size)
        object.__setattr__(self, "nbytes", nbytes)

    def __repr__(self) -> str:
        return f"Budget({format_size(self.nbytes)!r})"
