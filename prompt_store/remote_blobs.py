"""Blobs in an object store, with a folder of this machine in front.

    <url>/blobs/<sha256>.safetensors        what versions point to
    <url>/quarantine/<sha256>.safetensors   taken out of service by the collector, kept for one more grace time
    <url>/records/…                         see `remote_journal.py`
    <folder>                                a `BlobStore`: replaceable copies of what was read or written here

A blob counts as stored when the object store has it. Reading asks the folder first, so that what was once read here is
served while the object store is away; whatever comes from either is verified against its name.

There is no lock that publishers and collectors of several machines could share, so the order of steps does it: the
collector copies to quarantine before it deletes, readers look there, too, and only a later run, which has looked at all
versions again, purges what has lain there for a whole grace time or brings it back. A publication must be shorter than
the grace time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from prompt_store.blob_format import MAX_BLOB_BYTES
from prompt_store.blobs import SUFFIX, BlobStore, digest_in, digest_of, verified
from prompt_store.errors import BlobNotFound, CorruptBlob, InvalidBlob, StoreUnavailable
from prompt_store.objects import ObjectMissing, ObjectStore, ObjectTooLong
from prompt_store.places import Blobs
from prompt_store.refs import check_digest
from prompt_store.remote_journal import RecordObjects

DEFAULT_CACHE_BYTES = 1 << 30
_SERVICE, _QUARANTINE = "blobs", "quarantine"


class RemoteBlobStore:
    """Blobs in `objects`. `root` is the folder in front of them, which may be empty, full, or lost at any time;
    copies beyond `cache_bytes` make room, those that were not used for longest first."""

    def __init__(
        self,
        objects: ObjectStore,
        root: Path,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        max_bytes: int = MAX_BLOB_BYTES,
    ) -> None:
        self.objects = objects
        self.root = root
        self.max_bytes = max_bytes
        self._cache_bytes = cache_bytes
        self._near = BlobStore(root, max_bytes=max_bytes)

    def records(self) -> RecordObjects:
        return RecordObjects(self.objects)

    def publishing(self) -> AbstractContextManager[None]:
        """Keeps a collector of this machine away; for those of others, see above."""
        return self._near.publishing()

    def collecting(self) -> AbstractContextManager[None]:
        return self._near.collecting()

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its digest. A blob that is there already is written again: its grace time
        begins anew, and bytes that have rotted are replaced. Raises InvalidBlob, StoreUnavailable."""
        if len(data) > self.max_bytes:
            raise InvalidBlob(f"{len(data)} bytes, the limit is {self.max_bytes}")
        digest = digest_of(data)
        self.objects.put(_name(_SERVICE, digest), data)
        self._keep(data)
        return digest

    def read(self, digest: str) -> bytes:
        """The blob's bytes, verified. Raises BlobNotFound, CorruptBlob, StoreUnavailable when only the object store
        could tell and it is away."""
        data = self._kept(digest)
        if data is None:
            data = self._fetch_anywhere(digest)
            self._keep(data)
        return data

    def _fetch_anywhere(self, digest: str) -> bytes:
        """Also what a collector was wrong about: its next run brings it back, perhaps while we look."""
        for folder in (_SERVICE, _QUARANTINE):
            with suppress(BlobNotFound):
                return self._fetch(folder, digest)
        return self._fetch(_SERVICE, digest)

    def read_durable(self, digest: str) -> bytes:
        """As `read`, but what the object store holds in service: for checks."""
        return self._fetch(_SERVICE, digest)

    def _fetch(self, folder: str, digest: str) -> bytes:
        try:
            data = self.objects.get(_name(folder, digest), limit=self.max_bytes)
        except ObjectMissing:
            raise BlobNotFound(f"no blob {digest}", param="digest") from None
        except ObjectTooLong as error:
            raise CorruptBlob(f"blob {digest}: {error}", param="digest") from None
        return verified(data, digest)

    def _kept(self, digest: str) -> bytes | None:
        """The copy in the folder, if there is a good one; it was used just now."""
        try:
            data = self._near.read(digest)
            os.utime(self._near.path(digest))
        except (BlobNotFound, CorruptBlob, StoreUnavailable):
            return None
        except OSError:  # a folder that cannot be written can still be read
            return data
        return data

    def _keep(self, data: bytes) -> None:
        """A copy for later, if the disk allows."""
        with suppress(StoreUnavailable):
            self._near.put(data)
            self._near.shrink(self._cache_bytes)

    def heal(self, digest: str) -> bool:
        """Write a blob that the object store has lost once more, out of the folder. Returns whether that was done."""
        data = self._kept(digest)
        if data is not None:
            self.objects.put(_name(_SERVICE, digest), data)
        return data is not None

    def exists(self, digest: str) -> bool:
        """Whether the object store has an object of this name in service."""
        return self.objects.exists(_name(_SERVICE, digest))

    def digests(self) -> Iterator[str]:
        """Digests of all blobs in service, in order."""
        return self._digests(_SERVICE)

    def quarantined(self) -> Iterator[str]:
        """Digests of all blobs in quarantine, in order."""
        return self._digests(_QUARANTINE)

    def _digests(self, folder: str) -> Iterator[str]:
        return (digest for name in self.objects.names(folder) if (digest := digest_in(name)) is not None)

    def age_s(self, digest: str) -> float:
        """Seconds since the blob was written. Raises BlobNotFound."""
        return self._age_s(_SERVICE, digest)

    def quarantine_age_s(self, digest: str) -> float:
        """Seconds since the blob was put into quarantine. Raises BlobNotFound."""
        return self._age_s(_QUARANTINE, digest)

    def _age_s(self, folder: str, digest: str) -> float:
        try:
            return self.objects.age_s(_name(folder, digest))
        except ObjectMissing:
            raise BlobNotFound(f"no blob {digest}", param="digest") from None

    def quarantine(self, digest: str) -> None:
        """Take a blob out of service: copied first, then deleted, so that it is always somewhere."""
        self._move(_SERVICE, _QUARANTINE, digest)

    def bring_back(self, digest: str) -> None:
        """Return a blob from quarantine into service, its age beginning anew."""
        self._move(_QUARANTINE, _SERVICE, digest)

    def _move(self, source: str, target: str, digest: str) -> None:
        try:
            self.objects.copy(_name(source, digest), _name(target, digest))
        except ObjectMissing:
            raise BlobNotFound(f"no blob {digest}", param="digest") from None
        self.objects.delete(_name(source, digest))

    def purge(self, digest: str) -> None:
        """Delete a blob from quarantine for good."""
        self.objects.delete(_name(_QUARANTINE, digest))

    def purge_temporaries(self, *, older_than_s: float) -> int:
        """Of the folder; an object store has none."""
        return self._near.purge_temporaries(older_than_s=older_than_s)


def _name(folder: str, digest: str) -> str:
    return f"{folder}/{check_digest(digest)}{SUFFIX}"


def blobs_at(folder: Path, url: str | None) -> Blobs:
    """Blobs in `folder`, or at `url` with `folder` in front. Raises InvalidBlobsUrl."""
    return BlobStore(folder) if url is None else RemoteBlobStore(ObjectStore(url), folder)
