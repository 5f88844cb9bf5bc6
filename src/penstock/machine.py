"""What the machine can do: storage bandwidth, measured once per file system and kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import math
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from penstock.cache import cache_dir as cache_dir
from penstock.cache import read_json, write_json
from penstock.errors import StorageError
from penstock.probe import Progress, Rate, fill, measure_copy, measure_rates, measure_regain, open_probe, page_nbytes

KIB, MIB = 2**10, 2**20
READ_NBYTES = (256 * KIB, 512 * KIB, 1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB)
THREADS = (1, 2, 4)
_QUICK_READ_NBYTES = (256 * KIB, 1 * MIB, 4 * MIB)
_QUICK_SECONDS, _FULL_SECONDS = 0.015, 0.15
_QUICK_ROUNDS, _FULL_ROUNDS = 3, 4
_OWN_FILE_NBYTES = 64 * MIB  # a checkpoint of this size is measured itself; a smaller one might lie in a drive's cache
_QUICK_PROBE_NBYTES, _FULL_PROBE_NBYTES = 64 * MIB, 256 * MIB
_NEARLY = 0.95
_VERSION = 4


@dataclass(frozen=True, slots=True)
class StorageProfile:
    """How fast one file system reads.

    Attributes:
        bytes_per_second: with the best reads, measured again after they were chosen, so not merely the luckiest.
        request_seconds: what a read costs beyond its bytes, several being in flight.
        block_nbytes: what a direct read's memory address, file offset and length must be multiples of.
        best_read_nbytes: the smallest read that comes within 5 % of the best bandwidth.
        best_threads: the fewest threads that do.
        table: every combination measured.
        measured_at: when, ISO 8601 in UTC.
        direct: whether direct I/O works; if not, reads go through the page cache and leave it again.
        copy_bytes_per_second: from memory to memory, one thread, as a copy stage would.
        regain_bytes_per_second: at which memory that was given back to the system comes again as it is written.
        page_nbytes: in multiples of which memory can be given back.
    """

    bytes_per_second: float
    request_seconds: float
    block_nbytes: int
    best_read_nbytes: int
    best_threads: int
    table: tuple[Rate, ...]
    measured_at: str
    direct: bool
    copy_bytes_per_second: float
    regain_bytes_per_second: float
    page_nbytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What times depend on besides the model: a trace taken on another machine does not count on this one."""

    cpu: str
    cores: int
    memory_nbytes: int
    kernel: str
    torch_version: str

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over all fields."""
        return hashlib.sha256(repr(asdict(self)).encode()).hexdigest()[:16]


def describe() -> Machine:
    """This machine: CPU model, cores that this process may use, memory in bytes, kernel release, torch version."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    memory_nbytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return Machine(cpu, cores, memory_nbytes, platform.release(), metadata.version("torch"))


def storage_profile(path: str | os.PathLike[str]) -> StorageProfile:
    """The profile of the file system that holds `path`, from the cache or measured now (about 0.5 s).

    Args:
        path: a file or a folder that exists.

    Raises:
        StorageError: `path` does not exist, or nothing there could be read or written to measure with.
    """
    place = Path(path)
    cached = _from_json(read_json(_kept_at(place)))
    return measure(place, quick=True) if cached is None else cached


def measure(path: str | os.PathLike[str], *, quick: bool = False, progress: Progress | None = None) -> StorageProfile:
    """Measures the file system that holds `path` and keeps the result for `storage_profile`.

    It reads the checkpoint at `path` where that is large enough, else a nameless temporary file beside it, else one in
    the cache folder. The whole table takes about 10 s; the quick one 0.5 s.

    Raises:
        StorageError: `path` does not exist, or nothing there could be read or written to measure with.
    """
    place = Path(path)
    kept_at = _kept_at(place)
    with something_to_read(place, _QUICK_PROBE_NBYTES if quick else _FULL_PROBE_NBYTES) as file:
        try:
            profile = _profile(file, quick, progress)
        except OSError as error:
            raise StorageError(f"{file}: measuring storage failed: {error.strerror or error}") from error
    write_json(kept_at, {"version": _VERSION, **asdict(profile)})
    return profile


def _profile(file: Path, quick: bool, progress: Progress | None) -> StorageProfile:
    cells = [(threads, nbytes) for threads in THREADS for nbytes in (_QUICK_READ_NBYTES if quick else READ_NBYTES)]
    seconds, rounds = (_QUICK_SECONDS, _QUICK_ROUNDS) if quick else (_FULL_SECONDS, _FULL_ROUNDS)
    with open_probe(file) as probe:
        table = measure_rates(probe, cells, seconds=seconds, rounds=rounds, progress=progress)
        best = _best(table)
        (again,) = measure_rates(probe, [(best.threads, best.read_nbytes)], seconds=2 * seconds, rounds=rounds)
    small = next(rate for rate in table if rate.threads == best.threads)
    # Both from the same rounds: `again` was measured at another moment.
    request_seconds = small.read_nbytes * max(0.0, 1 / small.bytes_per_second - 1 / best.bytes_per_second)
    return StorageProfile(
        bytes_per_second=again.bytes_per_second,
        request_seconds=request_seconds,
        block_nbytes=probe.block_nbytes,
        best_read_nbytes=best.read_nbytes,
        best_threads=best.threads,
        table=tuple(table),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        direct=probe.direct,
        copy_bytes_per_second=measure_copy(rounds=rounds),
        regain_bytes_per_second=measure_regain(rounds=rounds),
        page_nbytes=page_nbytes(),
    )


def _best(table: list[Rate]) -> Rate:
    """Fewest threads, then smallest reads, among those that are nearly the fastest: both cost memory and wake-ups."""
    enough = _NEARLY * max(rate.bytes_per_second for rate in table)
    return min(
        (rate for rate in table if rate.bytes_per_second >= enough), key=lambda rate: (rate.threads, rate.read_nbytes)
    )


@contextlib.contextmanager
def something_to_read(place: Path, probe_nbytes: int) -> Iterator[Path]:
    """A path to a file on the file system of `place` with enough bytes in it."""
    own = _largest_file(place)
    if own is not None and own.stat().st_size >= _OWN_FILE_NBYTES:
        yield own
        return
    with contextlib.ExitStack() as stack:
        try:
            file = _temporary_file(stack, place, probe_nbytes)
        except OSError as error:
            if own is None or own.stat().st_size == 0:
                raise StorageError(
                    f"{place}: no room there or in the cache folder {cache_dir()} for {probe_nbytes} bytes to measure "
                    f"storage with ({error}); name a writable folder with PENSTOCK_CACHE"
                ) from error
            file = own  # better a small file than no measurement
        yield file


def _temporary_file(stack: contextlib.ExitStack, place: Path, nbytes: int) -> Path:
    """A nameless file beside `place`, else in the cache folder, open until `stack` closes."""
    try:
        return _fill_in(stack, place if place.is_dir() else place.parent, nbytes)
    except OSError:
        cache_dir().mkdir(parents=True, exist_ok=True)
        return _fill_in(stack, cache_dir(), nbytes)


def _fill_in(stack: contextlib.ExitStack, folder: Path, nbytes: int) -> Path:
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # `stack` closes it
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(file.close)
        fill(file.fileno(), nbytes)
        stack.push(on_failure.pop_all())
    return Path(f"/proc/self/fd/{file.fileno()}")


def _largest_file(place: Path) -> Path | None:
    if place.is_file():
        return place
    sizes = {file: file.stat().st_size for file in place.glob("*.safetensors") if file.is_file()}
    return max(sizes, key=lambda file: sizes[file], default=None)


def _kept_at(place: Path) -> Path:
    return cache_file(place, "storage")


def cache_file(place: Path, what: str) -> Path:
    """Where `what` was measured of the file system that holds `place` is kept.

    Raises:
        StorageError: `place` does not exist.
    """
    try:
        device = os.stat(place).st_dev
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror}; name a file or folder that exists") from error
    number = f"{os.major(device)}:{os.minor(device)}"
    source = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            fields = line.split()
            if fields[2] == number and "-" in fields:
                source = " ".join(fields[fields.index("-") + 1 :][:2])  # file system type and device
    key = hashlib.sha256(repr((number, source, platform.node(), platform.release())).encode()).hexdigest()[:16]
    return cache_dir() / "machine" / f"{what}-{key}.json"


def _from_json(value: object) -> StorageProfile | None:
    """The profile that `value` holds, or None: the file may be another version's, or anyone's."""
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        return None
    try:
        fields = {key: kept for key, kept in value.items() if key != "version"}
        table = tuple(Rate(**row) for row in fields["table"])
        profile = StorageProfile(**{**fields, "table": table})
        counts = [fields[name] for name in ("block_nbytes", "best_read_nbytes", "best_threads", "page_nbytes")]
        rates = [fields[f"{what}bytes_per_second"] for what in ("", "copy_", "regain_")]
        for row in fields["table"]:
            counts += [row["read_nbytes"], row["threads"]]
            rates += [row["bytes_per_second"]]
        sound = (
            all(_is_number(rate) and rate > 0 for rate in rates)
            and all(_is_number(count) and isinstance(count, int) and 0 < count <= 2**40 for count in counts)
            and _is_number(fields["request_seconds"])
            and 0 <= fields["request_seconds"] < 60
            and fields["block_nbytes"].bit_count() == 1
            and isinstance(fields["measured_at"], str)
            and isinstance(fields["direct"], bool)
            and table
        )
    except (TypeError, KeyError, AttributeError, OverflowError):
        return None
    return profile if sound else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
