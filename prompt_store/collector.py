"""Collecting orphans: blobs that no version names, left by publishers that died or by deleted tasks.

Two safeguards keep it from racing a publisher. A publisher writes or touches its blob and commits its record under a
shared lock; the collector looks and moves under the exclusive one. Where the file system has no locks, the grace time
does the same, as long as it is much longer than a publication. And nothing is deleted at once: a blob goes into
quarantine first, and comes back if a version names it after all.
"""

from __future__ import annotations

from contextlib import suppress

from prompt_store.errors import BlobNotFound, StoreBehind
from prompt_store.metadata import Metadata
from prompt_store.places import Blobs, Records


def collect_orphans(metadata: Metadata, blobs: Blobs, records: Records, *, grace_s: float) -> list[str]:
    """Returns the digests taken out of service. Raises StoreBehind: a server that forgot cannot say what is unused."""
    with blobs.collecting():
        referenced = _referenced(metadata, records)
        _empty_quarantine(blobs, referenced, grace_s)
        old = [digest for digest in blobs.digests() if digest not in referenced and _older(blobs, digest, grace_s)]
        collected = [digest for digest in old if _quarantined(blobs, digest)]
        blobs.purge_temporaries(older_than_s=grace_s)
        records.purge_temporaries()
    return sorted(collected)


def _referenced(metadata: Metadata, records: Records) -> set[str]:
    """Digests named by the server or by a record file: either is enough to keep a blob."""
    floor, epoch = records.floor(), metadata.epoch()
    if epoch < floor:
        raise StoreBehind(f"the metadata server is at epoch {epoch}, but the record files know of {floor}")
    named = {version.digest for version in metadata.dump().versions}
    named.update(record.version.digest for record in records.read_all().versions.values())
    return named


def _older(blobs: Blobs, digest: str, grace_s: float) -> bool:
    try:
        return blobs.age_s(digest) >= grace_s
    except BlobNotFound:  # another collector was faster
        return False


def _quarantined(blobs: Blobs, digest: str) -> bool:
    try:
        blobs.quarantine(digest)
    except BlobNotFound:  # as above
        return False
    return True


def _empty_quarantine(blobs: Blobs, referenced: set[str], grace_s: float) -> None:
    for digest in list(blobs.quarantined()):
        with suppress(BlobNotFound):  # as above
            if digest in referenced and not blobs.exists(digest):
                blobs.bring_back(digest)
            elif blobs.quarantine_age_s(digest) >= grace_s:
                blobs.purge(digest)
