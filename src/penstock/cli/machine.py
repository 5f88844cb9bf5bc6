"""`penstock machine`: what storage can do here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from penstock.budget import format_size
from penstock.cli.options import Json
from penstock.cli.terminal import Terminal, bandwidth, make_table
from penstock.machine import StorageProfile, describe, measure


def machine(
    path: Annotated[
        Path, typer.Argument(metavar="[PATH]", help="A model, or any file or folder on the storage to measure.")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Measure how fast storage reads, by block size and threads; plans use the result from then on (about 10 s)."""
    terminal = Terminal(as_json=as_json)
    with terminal.progress() as report:
        profile = measure(path, progress=lambda done, total: report("measuring storage", done, total))
    here = describe()
    terminal.show(f"{here.cpu}, {here.cores} cores, {format_size(here.memory_nbytes)}")
    terminal.show(f"Linux {here.kernel}, torch {here.torch_version}")
    _show_profile(terminal, path, profile)
    terminal.emit({"machine": asdict(here), "storage": asdict(profile)})


def _show_profile(terminal: Terminal, path: Path, profile: StorageProfile) -> None:
    threads = sorted({rate.threads for rate in profile.table})
    rates = {(rate.read_nbytes, rate.threads): rate.bytes_per_second for rate in profile.table}
    rows = [
        [format_size(size), *(bandwidth(rates[size, count]) for count in threads)]
        for size in sorted({rate.read_nbytes for rate in profile.table})
    ]
    headers = ["read size", *(f"{count} thread{'s' * (count > 1)}" for count in threads)]
    how = "direct I/O" if profile.direct else "buffered reads: the file system refuses direct I/O"
    terminal.show(make_table(headers, rows, title=f"Reads of {path.resolve()} ({how})"))
    terminal.show(
        f"Best: {bandwidth(profile.bytes_per_second)} with {profile.best_threads} thread"
        f"{'s' * (profile.best_threads > 1)} of {format_size(profile.best_read_nbytes)}; "
        f"{profile.request_seconds * 1e6:.0f} µs per request; blocks of {profile.block_nbytes} bytes; "
        f"memory to memory {bandwidth(profile.copy_bytes_per_second)}"
    )
