"""What people and programs see: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from penstock.budget import format_size

Report = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all); 0 in all: unknown."""

_UNWATCHED_WIDTH = 160  # columns where no terminal sets a width, so that nothing is folded in a file


class Terminal:
    """One command's output.

    Args:
        as_json: one JSON value on standard output and nothing else; no progress.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        width = None if sys.stdout.isatty() else _UNWATCHED_WIDTH
        self._out = Console(highlight=False, width=width)
        self._err = Console(stderr=True, highlight=False)

    def show(self, value: object) -> None:
        """Shows text or a rich renderable; nothing where JSON is wanted."""
        if not self.as_json:
            self._out.print(value, markup=False, soft_wrap=isinstance(value, str))

    def stream(self, text: str) -> None:
        """Shows a piece of running text at once, without a line's end."""
        if not self.as_json:
            print(text, end="", flush=True)

    def emit(self, value: object) -> None:
        """Prints `value` as JSON where JSON is wanted."""
        if self.as_json:
            print(json.dumps(value, indent=1), flush=True)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Report]:
        """A bar for each thing that is reported, gone when the block ends; none where nobody watches."""
        if self.as_json or not self._err.is_terminal:
            yield lambda title, done, total: None
            return
        tasks: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._err, transient=True) as bars:

            def report(title: str, done: int, total: int) -> None:
                if title not in tasks:
                    tasks[title] = bars.add_task(title)
                bars.update(tasks[title], completed=done, total=total or None)

            yield report


def make_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """A table whose first column is words and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def milliseconds(seconds: float) -> str:
    """`"12.3 ms"`."""
    return f"{seconds * 1e3:.1f} ms"


def bandwidth(bytes_per_second: float) -> str:
    """`"1.52 GB/s"`, in powers of ten as drives are sold."""
    return f"{bytes_per_second / 1e9:.2f} GB/s"


def plain_nbytes(nbytes: int) -> str:
    """A size for people and for copying: `"16.0 MiB (16777216)"`."""
    return f"{format_size(nbytes)} ({nbytes})"
