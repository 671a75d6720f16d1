"""A library of prompts: tasks, immutable versions, aliases; content-addressed blobs that explain themselves.

`PromptStore` is the way in; `Snapshot` is what a reader keeps. It knows no torch and nothing of whoever uses it.
"""

from prompt_store.blob_format import decode_blob, encode_blob
from prompt_store.blobs import BlobStore
from prompt_store.errors import (
    AliasNotFound,
    BlobNotFound,
    Conflict,
    CorruptBlob,
    Fenced,
    InvalidBlob,
    InvalidManifest,
    InvalidName,
    InvalidReference,
    NotFound,
    RevisionMismatch,
    StoreBehind,
    StoreError,
    StoreUnavailable,
    TaskExists,
    TaskNotFound,
    VersionInUse,
    VersionNotFound,
)
from prompt_store.fsck import FsckReport
from prompt_store.memory_metadata import MemoryMetadata
from prompt_store.metadata import Metadata
from prompt_store.models import (
    ALIAS_NAME,
    DIGEST,
    PROD,
    TASK_NAME,
    Alias,
    BackboneRef,
    Decoding,
    Evaluation,
    Event,
    Family,
    Golden,
    Metric,
    PromptMeta,
    Record,
    Task,
    TaskSpec,
    Version,
    VersionState,
)
from prompt_store.reconcile import Problem
from prompt_store.redis_metadata import RedisMetadata
from prompt_store.refs import (
    PromptRef,
    check_alias_name,
    check_digest,
    check_publication,
    check_task_name,
    parse_ref,
)
from prompt_store.snapshot import Snapshot
from prompt_store.store import PromptStore, Publication

__all__ = [
    "ALIAS_NAME",
    "DIGEST",
    "PROD",
    "TASK_NAME",
    "Alias",
    "AliasNotFound",
    "BackboneRef",
    "BlobNotFound",
    "BlobStore",
    "Conflict",
    "CorruptBlob",
    "Decoding",
    "Evaluation",
    "Event",
    "Family",
    "Fenced",
    "FsckReport",
    "Golden",
    "InvalidBlob",
    "InvalidManifest",
    "InvalidName",
    "InvalidReference",
    "MemoryMetadata",
    "Metadata",
    "Metric",
    "NotFound",
    "Problem",
    "PromptMeta",
    "PromptRef",
    "PromptStore",
    "Publication",
    "Record",
    "RedisMetadata",
    "RevisionMismatch",
    "Snapshot",
    "StoreBehind",
    "StoreError",
    "StoreUnavailable",
    "Task",
    "TaskExists",
    "TaskNotFound",
    "TaskSpec",
    "Version",
    "VersionInUse",
    "VersionNotFound",
    "VersionState",
    "check_alias_name",
    "check_digest",
    "check_publication",
    "check_task_name",
    "decode_blob",
    "encode_blob",
    "parse_ref",
]
