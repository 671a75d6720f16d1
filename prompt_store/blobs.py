"""Blobs on disk: one file per prompt, named by the sha256 of its bytes. Knows no Redis and no meaning of the bytes.

    <root>/blobs/<sha256>.safetensors     what versions point to
    <root>/quarantine/<sha256>.safetensors  taken out of service by the collector, kept for one more grace time
    <root>/lock                            shared by publishers, exclusive for the collector

The only part of a path that varies is a digest, checked against its pattern.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from prompt_store.blob_format import MAX_BLOB_BYTES
from prompt_store.durable import (
    TEMP_PREFIX,
    NotRegular,
    TooLong,
    locked,
    make_folder,
    read_file,
    storage_errors,
    sync_folder,
    write_file,
)
from prompt_store.errors import BlobNotFound, CorruptBlob, InvalidBlob
from prompt_store.journal import RecordFiles
from prompt_store.models import DIGEST
from prompt_store.refs import check_digest

SUFFIX = ".safetensors"
_DIGEST = re.compile(DIGEST)


class BlobStore:
    """A directory of blobs, which replicas may share. Safe to use from several threads and processes."""

    def __init__(self, root: Path, *, max_bytes: int = MAX_BLOB_BYTES) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._folder = root / "blobs"
        self._quarantine = root / "quarantine"
        with storage_errors("blob directory"):
            for folder in (root, self._folder, self._quarantine):
                make_folder(folder)

    def records(self) -> RecordFiles:
        """The record files beside the blobs."""
        return RecordFiles(self.root)

    def publishing(self) -> AbstractContextManager[None]:
        """Held from `put` until the record is committed: the collector waits for it."""
        return locked(self.root / "lock", exclusive=False)

    def collecting(self) -> AbstractContextManager[None]:
        """Held while the collector looks and moves: no publisher is between its blob and its record."""
        return locked(self.root / "lock", exclusive=True)

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its digest.

        A blob that is there already is verified and touched, so that its grace time begins anew; if its bytes have
        rotted they are replaced. Raises InvalidBlob when too large, StorageFailed when the disk refuses.
        """
        if len(data) > self.max_bytes:
            raise InvalidBlob(f"{len(data)} bytes, the limit is {self.max_bytes}")
        digest = digest_of(data)
        with storage_errors("blob directory"):
            if not self._touch(digest):
                write_file(self.path(digest), data)
        return digest

    def _touch(self, digest: str) -> bool:
        """Whether a good blob was there; its modification time is now."""
        try:
            self.read(digest)
        except (BlobNotFound, CorruptBlob):
            return False
        os.utime(self.path(digest))
        sync_folder(self._folder)  # its first writer may have died between rename and this flush
        return True

    def read(self, digest: str) -> bytes:
        """The blob's bytes, verified against their name. Raises BlobNotFound, CorruptBlob, StoreUnavailable."""
        path = self.path(digest)
        with storage_errors("blob directory"):
            try:
                data = read_file(path, limit=self.max_bytes)
            except FileNotFoundError:
                raise BlobNotFound(f"no blob {digest}", param="digest") from None
            except NotRegular:
                raise CorruptBlob(f"blob {digest} is not a regular file", param="digest") from None
            except TooLong as error:
                raise CorruptBlob(f"blob {digest}: {error.strerror}", param="digest") from None
        return verified(data, digest)

    def read_durable(self, digest: str) -> bytes:
        """As `read`; differs where a folder stands in front of an object store."""
        return self.read(digest)

    def heal(self, digest: str) -> bool:
        """Whether a missing blob could be put back from a copy: a folder has none."""
        return False

    def exists(self, digest: str) -> bool:
        """Whether a file of this name is there; says nothing of its bytes."""
        return os.path.lexists(self.path(digest))

    def digests(self) -> Iterator[str]:
        """Digests of all blobs in service, in no order."""
        return _digests(self._folder)

    def quarantined(self) -> Iterator[str]:
        """Digests of all blobs in quarantine, in no order."""
        return _digests(self._quarantine)

    def age_s(self, digest: str) -> float:
        """Seconds since the blob was written or touched. Raises BlobNotFound."""
        return _age_s(self.path(digest), digest)

    def quarantine_age_s(self, digest: str) -> float:
        """Seconds since the blob was put into quarantine. Raises BlobNotFound."""
        return _age_s(self._quarantine / (check_digest(digest) + SUFFIX), digest)

    def quarantine(self, digest: str) -> None:
        """Take a blob out of service; it can be brought back until it is purged. Call under `collecting`."""
        self._move(self._folder, self._quarantine, digest)

    def bring_back(self, digest: str) -> None:
        """Return a blob from quarantine into service, its age beginning anew."""
        self._move(self._quarantine, self._folder, digest)

    def _move(self, source: Path, target: Path, digest: str) -> None:
        name = check_digest(digest) + SUFFIX
        with storage_errors("blob directory"):
            try:
                os.utime(source / name, follow_symlinks=False)  # first: a crash in between only lengthens the wait
                os.rename(source / name, target / name)
            except FileNotFoundError:
                raise BlobNotFound(f"no blob {digest}", param="digest") from None
            sync_folder(target)
            sync_folder(source)

    def purge(self, digest: str) -> None:
        """Delete a blob from quarantine for good."""
        with storage_errors("blob directory"), suppress(FileNotFoundError):
            os.unlink(self._quarantine / (check_digest(digest) + SUFFIX))

    def purge_temporaries(self, *, older_than_s: float) -> int:
        """Delete temporary files left by publishers that were killed; returns how many. Call under `collecting`."""
        removed = 0
        with storage_errors("blob directory"):
            for entry in list(os.scandir(self._folder)):
                if entry.name.startswith(TEMP_PREFIX) and _age_s(Path(entry.path), entry.name) >= older_than_s:
                    os.unlink(entry.path)
                    removed += 1
        return removed

    def shrink(self, limit_bytes: int) -> None:
        """Delete blobs, those touched longest ago first, until at most `limit_bytes` are left: for copies only."""
        with storage_errors("blob directory"):
            files = sorted(_files(self._folder))
            total = sum(size for _, size, _ in files)
            for _, size, path in files:
                if total <= limit_bytes:
                    return
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size

    def path(self, digest: str) -> Path:
        """Where the blob of this digest lies, if it is there."""
        return self._folder / (check_digest(digest) + SUFFIX)


def digest_of(data: bytes) -> str:
    """The name of a blob: the sha256 of its bytes in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def verified(data: bytes, digest: str) -> bytes:
    """`data`, if that is its name. Raises CorruptBlob."""
    if digest_of(data) != digest:
        raise CorruptBlob(f"the bytes of blob {digest} have another digest", param="digest")
    return data


def _files(folder: Path) -> Iterator[tuple[float, int, str]]:
    """Modification time, size and path of every blob in a folder, while others may change it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if digest_in(entry.name) is None:
                continue
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                yield status.st_mtime, status.st_size, entry.path


def digest_in(name: str) -> str | None:
    """The digest that a blob's file name holds; None for other files."""
    digest = name.removesuffix(SUFFIX)
    return digest if digest != name and _DIGEST.fullmatch(digest) else None


def _digests(folder: Path) -> Iterator[str]:
    with storage_errors("blob directory"):
        names = os.listdir(folder)
    for name in names:
        if (digest := digest_in(name)) is not None:
            yield digest


def _age_s(path: Path, digest: str) -> float:
    with storage_errors("blob directory"):
        try:
            return time.time() - os.lstat(path).st_mtime
        except FileNotFoundError:
            raise BlobNotFound(f"no blob {digest}", param="digest") from None
