"""What is kept between processes: small JSON files in the user's cache folder, each safe to delete.

A cache never breaks a run: a file that cannot be read or written counts as absent. What is read back is untrusted,
so whoever calls `read_json` checks every field.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_MAX_JSON_NBYTES = 256 * 2**20


def cache_dir() -> Path:
    """The user's cache folder for Penstock; it may not exist yet.

    `$PENSTOCK_CACHE`, else `$XDG_CACHE_HOME/penstock`, else `~/.cache/penstock`.
    """
    own = os.environ.get("PENSTOCK_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification has relative paths ignored.
    base = Path(shared) if shared and os.path.isabs(shared) else Path.home() / ".cache"
    return base / "penstock"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` only when the block ends without an error, whole and on the disk.

    Until then it lies beside `path` under a hidden name; after an error it is gone.

    Raises:
        OSError: the folder does not exist or is not writable, or the disk is full.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _give_ordinary_mode(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _give_ordinary_mode(path: Path) -> None:
    """The mode that `open` would have given; `mkstemp` gives 0600, which other users of a checkpoint cannot read."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def read_json(path: Path) -> object:
    """The JSON value in `path`, or None where there is no readable JSON file. Nothing about it has been checked."""
    try:
        if path.stat().st_size > _MAX_JSON_NBYTES:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def write_json(path: Path, value: object) -> bool:
    """Keeps `value` at `path`, whole or not at all. False where it could not be kept (read-only folder, full disk)."""
    text = json.dumps(value, indent=1, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(text.encode())
    except OSError:
        return False
    return True
