"""Disks without room: a real one, small, seen by one process alone; and one below this very process, simulated."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


def small_disk(folder: Path, kib: int, *, read_only: bool = False) -> tuple[str, ...]:
    """What to put before a command so that it alone sees an empty disk of `kib` KiB at `folder`, with the system's own
    refusals; of every write, where it is `read_only`. Skips the test where nobody may mount one in a namespace of his
    own."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = f'mount -t tmpfs -o {"ro" if read_only else "rw"},size={kib}k none "$0" && exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(folder))
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no disk of one's own can be mounted here")
    return prefix


def refuse_writes(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, code: int = errno.ENOSPC, times: int | None = None
) -> Callable[[], int]:
    """Let every write and every flush of a file below `folder` fail, or so many; returns how many have failed."""
    real = {name: getattr(os, name) for name in ("write", "fsync")}
    refused = 0

    def patched(name: str) -> Callable[..., object]:
        def call(fd: int, *rest: object) -> object:
            nonlocal refused
            below = Path(os.readlink(f"/proc/self/fd/{fd}")).is_relative_to(folder)
            if below and (times is None or refused < times):
                refused += 1
                raise OSError(code, os.strerror(code))
            return real[name](fd, *rest)

        return call

    for name in real:
        monkeypatch.setattr(os, name, patched(name))
    return lambda: refused
