"""A memory cgroup counts what its process uses, and goes away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import cgroup
from penstock.cgroup import CgroupUnavailableError, memory_group

_REASON = cgroup.unavailable_reason()
needs_cgroup = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))
MIB = 2**20


@needs_cgroup
def test_the_peak_holds_what_was_used_and_the_usage_what_is() -> None:
    with memory_group() as group:
        script = f"open({str(group.path / 'cgroup.procs')!r}, 'w').write('0'); bytearray(b'x') * {64 * MIB}"
        subprocess.run([sys.executable, "-c", script], check=True)
        assert group.peak_nbytes() >= 64 * MIB
        assert group.usage_nbytes() < 64 * MIB
        assert group.anonymous_nbytes() < 64 * MIB


@needs_cgroup
def test_a_process_that_exceeds_the_limit_is_killed() -> None:
    with memory_group(limit_nbytes=48 * MIB) as group:
        script = f"open({str(group.path / 'cgroup.procs')!r}, 'w').write('0'); bytearray(b'x') * {256 * MIB}"
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9


@needs_cgroup
def test_the_group_is_removed_also_while_this_process_is_in_it() -> None:
    before = Path("/proc/self/cgroup").read_text()
    with memory_group() as group:
        group.enter()
        assert Path("/proc/self/cgroup").read_text() != before
    assert not group.path.exists()
    assert Path("/proc/self/cgroup").read_text() == before


def test_where_no_group_can_be_made_the_error_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "mkdir", refuse)
    if _REASON is None:
        with pytest.raises(CgroupUnavailableError, match="Permission denied"), memory_group():
            pass
    assert cgroup.unavailable_reason() is not None
