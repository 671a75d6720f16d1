"""One holder per folder: an advisory lock on a file in it, which the kernel drops when its last holder is gone."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any


class FolderBusy(Exception):
    """Another process holds the folder; `holder` is what it wrote about itself (may be empty)."""

    def __init__(self, folder: Path, holder: dict[str, Any]) -> None:
        super().__init__(f"{folder} is in use" + (f" by process {holder['pid']}" if "pid" in holder else ""))
        self.folder = folder
        self.holder = holder


class FolderLock:
    """Exclusive hold of `folder` through `folder/name`. `fd` may be handed to a child, which then holds it too."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.path = folder / name
        self.fd = -1

    def acquire(self, *, wait_s: float = 0.0, **about: Any) -> None:
        """Take the lock, waiting up to `wait_s` for a holder that is just ending; `about` is shown to whom it refuses.

        Raises FolderBusy.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = read_holder(self.path)
                    os.close(fd)
                    raise FolderBusy(self.folder, holder) from None
                time.sleep(0.05)
        self.fd = fd
        self.describe(pid=os.getpid(), **about)

    def describe(self, **about: Any) -> None:
        """Replace what others read about the holder."""
        text = json.dumps(about).encode()
        os.pwrite(self.fd, text, 0)
        os.ftruncate(self.fd, len(text))

    def release(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_holder(path: Path) -> dict[str, Any]:
    """What the present or last holder wrote about itself; empty when nothing readable is there."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_held(path: Path) -> bool:
    """True when some process holds the lock now."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)
