"""`PromptStore`: the one way in. Blob first, record second, record files third, then the answer.

Thread-safe and synchronous. It knows no torch, no model and no HTTP; what it raises is in `errors.py`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prompt_store.blob_format import canonical_meta, decode_blob
from prompt_store.collector import collect_orphans
from prompt_store.errors import AliasNotFound, CorruptBlob
from prompt_store.fsck import FsckReport, check_store, rebuild_store
from prompt_store.metadata import Change, Delta, Draft, Metadata, alias_in, member_keys
from prompt_store.models import (
    PROD,
    Alias,
    AliasTarget,
    EnsembleMode,
    Evaluation,
    Event,
    PromptMeta,
    Task,
    TaskSpec,
    Version,
    VersionState,
)
from prompt_store.places import Blobs, Records
from prompt_store.publication import JointPublication, NewPrompt, Publication, check_count, check_state, encode, plain
from prompt_store.redis_metadata import DEFAULT_TIMEOUT_S, RedisMetadata
from prompt_store.refs import (
    PromptRef,
    check_alias_name,
    check_event_id,
    check_publication,
    check_task_name,
    only_version,
)
from prompt_store.remote_blobs import blobs_at
from prompt_store.snapshot import Snapshot, snapshot_of

MAX_PAGE = 1000


class PromptStore:
    """Tasks, versions and aliases in a metadata server; blobs and record files in a directory or an object store."""

    def __init__(self, metadata: Metadata, blobs: Blobs) -> None:
        self.metadata = metadata
        self.blobs = blobs
        self.records: Records = blobs.records()

    @classmethod
    def open(
        cls, redis_url: str, blob_dir: Path, *, blobs_url: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> PromptStore:
        """A store over a Redis-protocol server and a directory, which is created. Connects on first use.

        With `blobs_url` (`s3://bucket/prefix`) blobs and records lie in an object store, and the directory has copies.
        `timeout_s` bounds connecting to the server and each of its replies. Raises InvalidBlobsUrl.
        """
        return cls(RedisMetadata(redis_url, timeout_s=timeout_s), blobs_at(blob_dir, blobs_url))

    def close(self) -> None:
        """Close the connections to the metadata server."""
        self.metadata.close()

    def __enter__(self) -> PromptStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # tasks

    def put_task(self, name: str, spec: TaskSpec) -> Task:
        """Create the task or change its spec. Raises Conflict when labels would change while versions exist."""
        return self.ensure_task(name, spec)[0]

    def ensure_task(self, name: str, spec: TaskSpec) -> tuple[Task, bool]:
        """As `put_task`; also says whether this call created the task."""
        change = self.metadata.put_task(
            check_task_name(name), spec, new_task_id=secrets.token_hex(16), at=time.time(), floor=self.records.floor()
        )
        self.records.write(change)
        assert change.entry is not None
        return change.entry.task, change.created

    def get_task(self, name: str) -> Task:
        """Raises TaskNotFound."""
        return self.metadata.get_task(check_task_name(name))

    def list_tasks(self, *, after: str | None = None, limit: int = 100) -> tuple[list[Task], bool]:
        """Tasks in the order of their names, those behind `after`; and whether there are more."""
        return self.metadata.list_tasks(after=None if after is None else check_task_name(after), limit=_page(limit))

    def delete_task(self, name: str) -> None:
        """Delete a task with its versions and aliases; their blobs go with the next collection. Raises TaskNotFound.

        Numbers and publications stay used: a new task of this name goes on counting.
        """
        self.records.write(self.metadata.delete_task(check_task_name(name), at=time.time(), floor=self.records.floor()))

    # versions

    def publish(
        self,
        *,
        task: str,
        meta: PromptMeta,
        tensors: Mapping[str, np.ndarray],
        publication: str,
        alias: str | None = PROD,
        state: VersionState = "published",
        fence: int | None = None,
        alias_revision: int | None = None,
        card: Sequence[Evaluation] = (),
        spec: TaskSpec | None = None,
    ) -> Publication:
        """Make a version of `task` durable, and point `alias` to it.

        `publication` is the idempotency key: a second call with the same key returns the first call's version. `fence`
        is refused when a higher one was seen for this publication. `alias_revision` is compared as in `move_alias`.
        `spec` creates the task if it does not exist. The first version of a task becomes `prod`, unless `alias` is
        None. When this returns, the version survives the loss of the metadata server.

        Raises InvalidBlob, InvalidName, TaskNotFound, RevisionMismatch, Fenced, Conflict, StoreUnavailable. After
        StoreUnavailable the same call may be made again.
        """
        check_state(alias, state)
        key = check_publication(publication)
        content, data = encode(NewPrompt(meta, tensors, card), check_task_name(task), key)
        draft = Draft(
            task=task,
            publication=key,
            contents=(content,),
            state=state,
            alias=None if alias is None else check_alias_name(alias),
            expected=alias_revision,
            fence=fence,
            spec=spec,
            new_task_id=secrets.token_hex(16),
        )
        made = self._commit(draft, [data])
        return Publication(made.versions[0], made.alias, made.created)

    def publish_together(
        self,
        *,
        task: str,
        prompts: Sequence[NewPrompt],
        publication: str,
        alias: str | None = PROD,
        mode: EnsembleMode = "vote",
        state: VersionState = "published",
        fence: int | None = None,
        alias_revision: int | None = None,
        spec: TaskSpec | None = None,
    ) -> JointPublication:
        """Make 2 to 16 versions of `task` in the order given, and point `alias` to the ensemble of them: all of it in
        one atomic step, or nothing. Options and errors as in `publish`."""
        check_count(prompts)
        check_state(alias, state)
        keys = member_keys(check_publication(publication))
        encoded = [encode(one, check_task_name(task), key) for one, key in zip(prompts, keys, strict=False)]
        draft = Draft(
            task=task,
            publication=publication,
            contents=tuple(content for content, _ in encoded),
            state=state,
            alias=None if alias is None else check_alias_name(alias),
            expected=alias_revision,
            fence=fence,
            spec=spec,
            new_task_id=secrets.token_hex(16),
            mode=mode,
        )
        return self._commit(draft, [data for _, data in encoded])

    def _commit(self, draft: Draft, blobs: Sequence[bytes]) -> JointPublication:
        with self.blobs.publishing():
            for data in blobs:
                self.blobs.put(data)
            change = self.metadata.publish(draft, at=time.time(), floor=self.records.floor())
            self.records.write(change)
        return JointPublication(change.versions, alias_in(change, draft.task, draft.alias), change.created)

    def raise_fence(self, publication: str, fence: int) -> int:
        """From now on refuse to publish under a lower token; returns the highest token seen. For whoever takes over."""
        return self.metadata.raise_fence(check_publication(publication), fence)

    def get_version(self, task: str, number: int) -> Version:
        """Raises TaskNotFound, VersionNotFound."""
        return self.metadata.get_version(check_task_name(task), number)

    def list_versions(self, task: str, *, after: int = 0, limit: int = 100) -> tuple[list[Version], bool]:
        """Versions with a number above `after`, ascending; and whether there are more. Raises TaskNotFound."""
        return self.metadata.list_versions(check_task_name(task), after=after, limit=_page(limit))

    def retire_version(self, task: str, number: int) -> Version:
        """Set the state `retired`. Raises VersionInUse while an alias mentions it."""
        return self.set_state(task, number, "retired")

    def set_state(self, task: str, number: int, state: VersionState) -> Version:
        """Raises TaskNotFound, VersionNotFound, and VersionInUse for `retired` while an alias mentions it."""
        name, floor = check_task_name(task), self.records.floor()
        return self._recorded(self.metadata.set_state(name, number, state, at=time.time(), floor=floor))

    def append_evaluation(self, task: str, number: int, evaluation: Evaluation) -> Version:
        """Add to the version's card; an evaluation that is there already is not added again."""
        change = self.metadata.append_evaluation(
            check_task_name(task), number, plain(evaluation), at=time.time(), floor=self.records.floor()
        )
        return self._recorded(change)

    def _recorded(self, change: Change) -> Version:
        self.records.write(change)
        (version,) = change.versions
        return version

    def find_publication(self, publication: str) -> Version | None:
        """The version that `publication` made, the first of several; None if it made none that still exists."""
        return next(iter(self.find_publications(publication)), None)

    def find_publications(self, publication: str) -> list[Version]:
        """All versions that `publication` made and that still exist, in the order in which they were given."""
        return self.metadata.find_publication(check_publication(publication))

    # aliases

    def get_alias(self, task: str, name: str) -> Alias:
        """Raises TaskNotFound, AliasNotFound."""
        check_alias_name(name)
        for alias in self.list_aliases(task):
            if alias.name == name:
                return alias
        raise AliasNotFound(f"task {task} has no alias {name}", param="alias")

    def list_aliases(self, task: str) -> list[Alias]:
        """All aliases of a task, by name. Raises TaskNotFound."""
        return self.metadata.list_aliases(check_task_name(task))

    def move_alias(self, task: str, name: str, target: int | AliasTarget, *, expected: int | None) -> Alias:
        """Point an alias to a version (or a split, or an ensemble), if its revision is `expected`; 0: if it does not
        exist; None: in any case.

        Raises RevisionMismatch, TaskNotFound, VersionNotFound, and Conflict for a retired or quarantined version; the
        `param` of the last two is the version's place in the target.
        """
        change = self.metadata.move_alias(
            check_task_name(task),
            check_alias_name(name),
            AliasTarget(version=target) if isinstance(target, int) else target,
            expected=expected,
            at=time.time(),
            floor=self.records.floor(),
        )
        self.records.write(change)
        alias = alias_in(change, task, name)
        assert alias is not None
        return alias

    def delete_alias(self, task: str, name: str, *, expected: int | None) -> None:
        """Raises RevisionMismatch as `move_alias` does, TaskNotFound, AliasNotFound."""
        change = self.metadata.delete_alias(
            check_task_name(task), check_alias_name(name), expected=expected, at=time.time(), floor=self.records.floor()
        )
        self.records.write(change)

    # reading

    def resolve(self, ref: PromptRef) -> Version:
        """The one version that `ref` means now.

        Raises TaskNotFound, VersionNotFound, AliasNotFound, and InvalidReference for an alias that points to several.
        """
        if ref.version is not None:
            return self.get_version(ref.task, ref.version)
        return self.get_version(ref.task, only_version(ref, self.get_alias(ref.task, ref.alias or PROD)))

    def load(self, version: Version) -> dict[str, np.ndarray]:
        """The tensors of a version, fully verified: name -> float32 array of its own.

        Raises BlobNotFound, CorruptBlob when the bytes are not those of this version, InvalidBlob when they are but
        no reader should accept them.
        """
        data = self.blobs.read(version.digest)
        if len(data) != version.size_bytes:
            raise CorruptBlob(f"blob {version.digest} has {len(data)} bytes, its record says {version.size_bytes}")
        meta, tensors = decode_blob(data, max_bytes=self.blobs.max_bytes)
        if meta.task != version.task or canonical_meta(meta) != canonical_meta(version.meta):
            raise CorruptBlob(f"blob {version.digest} describes another prompt than {version.task}@{version.number}")
        return tensors

    def read_blob(self, digest: str) -> bytes:
        """The bytes of a blob, verified against its digest. Raises BlobNotFound, CorruptBlob."""
        return self.blobs.read(digest)

    def epoch(self) -> int:
        """The counter of changes: equal epochs, equal registry."""
        return self.metadata.epoch()

    def events(self, after: str = "0", *, limit: int = 1000, block_ms: int | None = None) -> list[Event]:
        """Events behind the id `after`, oldest first; waits up to `block_ms` milliseconds when there are none.

        The stream is trimmed: a reader that was away too long sees a gap in the epochs and takes a new snapshot.
        """
        return self.metadata.events(check_event_id(after), limit=_page(limit), block_ms=block_ms)

    def snapshot(self) -> Snapshot:
        """Everything readable, as of one moment."""
        return snapshot_of(self.metadata.dump())

    def delta(self, since: Snapshot) -> Delta | None:
        """What changed since that snapshot: `since.after(delta)` is the registry of now.

        None when events do not tell it (the stream was trimmed, the registry was restored): then read everything.
        """
        return self.metadata.delta(check_event_id(since.last_event_id), epoch=since.epoch)

    # care

    def collect_orphans(self, *, grace_s: float) -> list[str]:
        """Take blobs that no version names out of service, if untouched for `grace_s` seconds; returns their digests.

        They stay in quarantine for the same time before they are deleted. Raises StoreBehind.
        """
        return collect_orphans(self.metadata, self.blobs, self.records, grace_s=grace_s)

    def fsck(self) -> FsckReport:
        """Compare server, record files and blobs, and verify every blob. Changes nothing."""
        return check_store(self.metadata, self.blobs, self.records)

    def rebuild(self) -> FsckReport:
        """Put back into the server what the record files know and it has forgotten, and the other way round."""
        return rebuild_store(self.metadata, self.blobs, self.records)

    def behind(self) -> bool:
        """Whether the server has forgotten writes that the record files hold; if so, writing raises StoreBehind."""
        floor = self.records.floor()  # first: a write in between would raise the floor above the epoch that was read
        return self.epoch() < floor


def _page(limit: int) -> int:
    return max(1, min(limit, MAX_PAGE))
