"""`penstock machine`: what storage can do here, and what loads cost layers that compute."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.budget import format_size
from penstock.capacity import LoadCapacity, measure_capacity, possible_samples
from penstock.cli.options import Json
from penstock.cli.terminal import Terminal, bandwidth, make_table
from penstock.machine import StorageProfile, describe, measure
from penstock.planning.kinds import SLOWDOWNS


def machine(
    path: Annotated[
        Path, typer.Argument(metavar="[PATH]", help="A model, or any file or folder on the storage to measure.")
    ] = Path(),
    with_capacity: Annotated[
        bool,
        typer.Option(
            "--capacity",
            help="Measure as well how loads slow layers down, for the strategy flashmem (another minute or two).",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast storage reads, by block size and threads; plans use the result from then on (about 10 s)."""
    terminal = Terminal(as_json=as_json)
    capacity = None
    with terminal.progress() as report:
        profile = measure(path, progress=lambda done, total: report("measuring storage", done, total))
        if with_capacity:
            capacity = measure_capacity(
                path, progress=lambda done, total: report("operators beside loads", done, total)
            )
    here = describe()
    terminal.show(f"{here.cpu}, {here.cores} cores, {format_size(here.memory_nbytes)}")
    terminal.show(f"Linux {here.kernel}, torch {here.torch_version}")
    _show_profile(terminal, path, profile)
    answer: dict[str, Any] = {"machine": asdict(here), "storage": asdict(profile)}
    if capacity is not None:
        answer["capacity"] = _show_capacity(terminal, capacity)
    terminal.emit(answer)


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
        f"memory to memory {bandwidth(profile.copy_bytes_per_second)}; memory given back comes again at "
        f"{bandwidth(profile.regain_bytes_per_second)}"
    )


def _show_capacity(terminal: Terminal, capacity: LoadCapacity) -> dict[str, Any]:
    """Shows what was found, and returns it for JSON."""
    classes = [capacity.of_class(kind) for kind in SLOWDOWNS]
    rows = [
        [
            found.kind,
            f"{SLOWDOWNS[found.kind]:.0%}",
            f"{found.slowdown:.1%}",
            bandwidth(found.bytes_per_second),
            f"{found.bytes_per_second / capacity.bytes_per_second:.0%}",
        ]
        for found in classes
    ]
    headers = ["class", "allowed slowdown", "at full speed", "loads that fit", "share of the bandwidth"]
    terminal.show(make_table(headers, rows, title="Layers while storage is read beside them"))
    terminal.show(
        f"Storage brings {bandwidth(capacity.bytes_per_second)} beside computing. No slowdown means none beyond noise, "
        f"{capacity.noise:.1%}. Predicted for operators left out of the training, slowdowns are off by "
        f"{100 * capacity.median_error:.1f} percentage points (median) and {100 * capacity.p95_error:.1f} (95th "
        f"percentile)"
    )
    lost = possible_samples() - len(capacity.samples)
    if lost:
        terminal.show(
            f"Other programs disturbed {lost} of {possible_samples()} samples, which do not count: measure again when "
            "the machine has less to do"
        )
    return {
        "bytes_per_second": capacity.bytes_per_second,
        "noise": capacity.noise,
        "classes": [asdict(found) for found in classes],
        **asdict(capacity),
    }
