"""Files that survive: written whole or not at all, flushed before they count, read without following links.

Nothing here knows what the bytes mean. Memory mapping is never used: a mapped file that is truncated by somebody else
kills the process, while a short read is an ordinary error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_store.errors import StorageFailed, StorageFull, StoreUnavailable

TEMP_PREFIX = ".tmp-"
_FILE_MODE = 0o640
_LOCK_POLL_S = 0.005
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where waiting or trying again makes no room: the disk, the quota, the size of a file."""


class NotRegular(OSError):
    """A link, FIFO, device or directory stands where a regular file should."""


class TooLong(OSError):
    """The file is larger than the reader accepts."""


def write_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a crash at any point leaves the old file or the new one, never a part.

    Temporary file in the same folder (created exclusively), full write, fsync, rename, fsync of the folder. After a
    failed fsync the temporary file is given up: its pages may be lost while a second fsync reports success.
    """
    place_file(path, data)
    sync_folder(path.parent)


def place_file(path: Path, data: bytes) -> None:
    """`write_file` without the final fsync of the folder, for a writer of several files that syncs it once."""
    temporary = path.parent / f"{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
    try:
        try:
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _write_all(fd: int, data: bytes) -> None:
    """Write in a loop: one call may write less than it was given, on a nearly full disk for instance."""
    rest = memoryview(data)
    while rest:
        written = os.write(fd, rest)
        if written == 0:
            raise OSError(errno.EIO, "write made no progress")
        rest = rest[written:]


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename or unlink inside it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Create `folder` with its parents if needed and flush the entry in its parent."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)


def read_file(path: Path, *, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises FileNotFoundError, NotRegular for anything but a regular file (a FIFO does not block), TooLong before
    anything is read when the file is larger than `limit`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotRegular(error.errno, "not a regular file") from error
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular(errno.EINVAL, "not a regular file")
        if status.st_size > limit:
            raise TooLong(errno.EFBIG, f"{status.st_size} bytes, the limit is {limit}")
        return _read_all(fd, limit)
    finally:
        os.close(fd)


def _read_all(fd: int, limit: int) -> bytes:
    pieces: list[bytes] = []
    total = 0
    while piece := os.read(fd, 1 << 20):
        total += len(piece)
        if total > limit:  # it grew while being read
            raise TooLong(errno.EFBIG, f"more than {limit} bytes")
        pieces.append(piece)
    return b"".join(pieces)


@contextmanager
def locked(path: Path, *, exclusive: bool, timeout_s: float = 10.0) -> Iterator[None]:
    """Hold an advisory lock on the file `path`, shared or exclusive, between threads and processes.

    The kernel drops it when the holder dies. Raises StoreUnavailable when it is not free within `timeout_s` seconds.
    """
    with storage_errors("lock file"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
    try:
        _acquire(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, timeout_s)
        yield
    finally:
        os.close(fd)


def _acquire(fd: int, kind: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreUnavailable(f"the store's lock was not free within {timeout_s:g} s") from None
            time.sleep(_LOCK_POLL_S)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the disk into StorageFull or StorageFailed, with the system's reason and no path."""
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno in NO_ROOM else StorageFailed
        raise kind(f"{what}: {error.strerror or type(error).__name__}") from error
