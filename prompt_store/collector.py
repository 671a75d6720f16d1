"""Collecting orphans: blobs that no version names, left by publishers that died or by deleted tasks.

Two safeguards keep it from racing a publisher. A publisher writes or touches its blob and commits its record under a
shared lock; the collector looks and moves under the exclusive one. Where the file system has no locks, the grace time
does the same, as long as it is much longer than a publication. And nothing is deleted at once: a blob goes into
quarantine first, and comes back if a version names it after all.
"""

from __future__ import annotations

from prompt_store.blobs import BlobStore
from prompt_store.errors import BlobNotFound, StoreBehind
from prompt_store.journal import RecordFiles
from prompt_store.metadata import Metadata


def collect_orphans(metadata: Metadata, blobs: BlobStore, records: RecordFiles, *, grace_s: float) -> list[str]:
    """Returns the digests taken out of service. Raises StoreBehind: a server that forgot cannot say what is unused."""
    with blobs.collecting():
        referenced = _referenced(metadata, records)
        _empty_quarantine(blobs, referenced, grace_s)
        collected = [
            digest for digest in blobs.digests() if digest not in referenced and _older(blobs, digest, grace_s)
        ]
        for digest in collected:
            blobs.quarantine(digest)
        blobs.purge_temporaries(older_than_s=grace_s)
        records.purge_temporaries()
    return sorted(collected)


def _referenced(metadata: Metadata, records: RecordFiles) -> set[str]:
    """Digests named by the server or by a record file: either is enough to keep a blob."""
    floor, epoch = records.floor(), metadata.epoch()
    if epoch < floor:
        raise StoreBehind(f"the metadata server is at epoch {epoch}, but the record files know of {floor}")
    named = {version.digest for version in metadata.dump().versions}
    named.update(records.referenced())
    return named


def _older(blobs: BlobStore, digest: str, grace_s: float) -> bool:
    try:
        return blobs.age_s(digest) >= grace_s
    except BlobNotFound:  # another collector was faster
        return False


def _empty_quarantine(blobs: BlobStore, referenced: set[str], grace_s: float) -> None:
    for digest in list(blobs.quarantined()):
        if digest in referenced and not blobs.exists(digest):
            blobs.bring_back(digest)
        elif blobs.quarantine_age_s(digest) >= grace_s:
            blobs.purge(digest)
