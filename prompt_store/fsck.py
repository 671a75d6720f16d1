"""Checking the whole store, and rebuilding the metadata server out of the record files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from prompt_store.blob_format import canonical_meta, decode_blob
from prompt_store.errors import BlobNotFound, Conflict, CorruptBlob, InvalidBlob, StoreUnavailable
from prompt_store.metadata import Metadata
from prompt_store.models import Record, Version
from prompt_store.places import Blobs, Records
from prompt_store.reconcile import Comparison, Problem, compare

_ATTEMPTS = 5


class FsckReport(Record):
    """What was found. `orphans` are blobs that no version names: no problem, the collector's work."""

    epoch: int
    tasks: int
    versions: int
    blobs: int
    orphans: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is left to repair."""
        return all(problem.repaired for problem in self.problems)


def check_store(metadata: Metadata, blobs: Blobs, records: Records) -> FsckReport:
    """Compare the three and verify every blob. Writes of others in the meantime may show up as differences."""
    found = _compare(metadata, records)
    return _report(found, blobs, found.dump.epoch, found.problems)


def rebuild_store(metadata: Metadata, blobs: Blobs, records: Records) -> FsckReport:
    """Remove the differences: the server learns in one atomic step, then the files. Blobs are only verified.

    Raises StoreUnavailable when others keep writing in between.
    """
    for _ in range(_ATTEMPTS):
        found = _compare(metadata, records)
        restoration = found.restoration(time.time())
        epoch = found.dump.epoch
        if restoration is not None:
            try:
                epoch = metadata.restore(restoration, expected_epoch=epoch)
            except Conflict:
                continue
        for change in found.changes:
            records.write(replace(change, epoch=epoch))
        records.raise_floor(epoch)
        _bring_back(found, blobs)
        problems = _judge(found.problems, still_unreadable=records.read_all().unreadable)
        return _report(found, blobs, epoch, problems)
    raise StoreUnavailable("the registry kept changing while it was being rebuilt")


def _compare(metadata: Metadata, records: Records) -> Comparison:
    # Files first: a write that falls in between is then known to the server at a later epoch, and the server is right.
    journal = records.read_all()
    return compare(journal, metadata.dump())


def _report(found: Comparison, blobs: Blobs, epoch: int, problems: list[Problem]) -> FsckReport:
    versions = found.live_versions()
    present = set(blobs.digests())
    return FsckReport(
        epoch=epoch,
        tasks=len(found.live),
        versions=len(versions),
        blobs=len(present),
        orphans=tuple(sorted(present - {version.digest for version in versions})),
        problems=(*problems, *_check_blobs(blobs, versions)),
    )


def _judge(problems: list[Problem], *, still_unreadable: list[str]) -> list[Problem]:
    """The problems after the repair: what is lost on both sides stays one."""
    beyond_repair = {problem.subject for problem in problems if problem.kind == "lost_record"} | set(still_unreadable)
    return [p.model_copy(update={"repaired": p.subject not in beyond_repair}) for p in problems]


def _bring_back(found: Comparison, blobs: Blobs) -> None:
    """Blobs that a collector put into quarantine although a version names them, and lost ones that have a copy."""
    named = {version.digest for version in found.live_versions()}
    quarantined = set(blobs.quarantined())
    for digest in named.difference(blobs.digests()):
        if digest in quarantined:
            blobs.bring_back(digest)
        else:
            blobs.heal(digest)


def _check_blobs(blobs: Blobs, versions: Iterable[Version]) -> list[Problem]:
    problems = []
    for version in versions:
        subject = f"version {version.task}@{version.number}"
        try:
            meta, _ = decode_blob(blobs.read_durable(version.digest), max_bytes=blobs.max_bytes)
        except BlobNotFound:
            problems.append(Problem(kind="missing_blob", subject=subject, detail=version.digest))
        except (CorruptBlob, InvalidBlob) as error:
            problems.append(Problem(kind="corrupt_blob", subject=subject, detail=error.message))
        else:
            if canonical_meta(meta) != canonical_meta(version.meta):
                problems.append(Problem(kind="corrupt_blob", subject=subject, detail="it describes another prompt"))
    return problems
