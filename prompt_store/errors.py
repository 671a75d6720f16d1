"""Errors of the prompt store.

    StoreError
    ├── InvalidName            a task, alias or digest that is not of its form
    ├── InvalidReference       `task@word` and the like; carries a suggestion
    ├── InvalidBlobsUrl        a place for blobs that is not of its form, or whose library is not installed
    ├── InvalidBlob            bytes that are not an acceptable prompt (size, header, names, dtype, shape, finite)
    ├── NotFound
    │   ├── TaskNotFound
    │   ├── VersionNotFound
    │   ├── AliasNotFound
    │   └── BlobNotFound
    ├── Conflict               lost a race that a retry of the same call will not win
    │   ├── TaskExists
    │   ├── RevisionMismatch   compare-and-set of an alias failed; carries the current revision
    │   ├── VersionInUse       an alias still points to the version
    │   └── Fenced             a newer holder of the job has taken over
    ├── CorruptBlob            stored bytes are not what their record says: digest, size, kind of file, metadata
    ├── CorruptRecord          a record file whose seal is broken: `fsck` names it, `rebuild` writes it anew; or a value
    │                          of the metadata server that cannot be read, because it is damaged or of a newer format
    ├── InvalidManifest        a saved snapshot that cannot be trusted; there is nothing to fall back to but the server
    └── StoreUnavailable       metadata server or blob directory out of reach; the same call may work later
        ├── StorageFailed      the disk of blobs and record files cannot be read or written: it is read-only, or broken
        │   └── StorageFull    it has no room
        └── StoreBehind        the metadata server has forgotten writes that the record files hold: rebuild first

Every error has a stable `code`, a message for people, and `param`, the field or name it is about.
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of all errors raised by this package."""

    code = "store_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidName(StoreError):
    code = "invalid_name"


class InvalidReference(StoreError):
    code = "invalid_reference"


class InvalidBlobsUrl(StoreError):
    code = "invalid_blobs_url"


class InvalidBlob(StoreError):
    code = "invalid_blob"


class NotFound(StoreError):
    code = "not_found"


class TaskNotFound(NotFound):
    code = "task_not_found"


class VersionNotFound(NotFound):
    code = "version_not_found"


class AliasNotFound(NotFound):
    code = "alias_not_found"


class BlobNotFound(NotFound):
    code = "blob_not_found"


class Conflict(StoreError):
    code = "conflict"


class TaskExists(Conflict):
    code = "task_exists"


class RevisionMismatch(Conflict):
    code = "revision_mismatch"

    def __init__(self, message: str, *, current: int | None, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.current = current


class VersionInUse(Conflict):
    code = "version_in_use"


class Fenced(Conflict):
    code = "fenced"


class CorruptBlob(StoreError):
    code = "corrupt_blob"


class CorruptRecord(StoreError):
    code = "corrupt_record"


class InvalidManifest(StoreError):
    code = "invalid_manifest"


class StoreUnavailable(StoreError):
    code = "store_unavailable"


class StorageFailed(StoreUnavailable):
    code = "storage_failed"


class StorageFull(StorageFailed):
    code = "storage_full"


class StoreBehind(StoreUnavailable):
    code = "store_behind"
