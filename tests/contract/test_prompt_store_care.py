"""What every metadata server promises to those who care for the store: rebuilding, checking, collecting orphans."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from prompt_store import (
    PROD,
    BlobNotFound,
    Conflict,
    PromptStore,
    Publication,
    StoreBehind,
    TaskNotFound,
)
from prompt_store.testing import EXAMPLE_SPEC, example_evaluation, example_meta, example_tensors
from tests.contract.conftest import Server, on_disk

DAY_S = 86_400.0


def publish(store: PromptStore, publication: str, *, task: str = "sentiment", seed: int = 0, **options) -> Publication:
    meta = example_meta(task)
    return store.publish(
        task=task,
        meta=meta,
        tensors=example_tensors(meta, seed),
        publication=publication,
        spec=EXAMPLE_SPEC,
        **options,
    )


def fill(store: PromptStore) -> None:
    """Every kind of record: tasks, versions, states, cards, aliases, deletions of both."""
    publish(store, "job-1", card=[example_evaluation()])
    publish(store, "job-2", seed=1)
    publish(store, "job-3", seed=2, alias=None, state="candidate")
    store.append_evaluation("sentiment", 2, example_evaluation(0.7))
    store.move_alias("sentiment", "canary", 3, expected=0)
    store.move_alias("sentiment", "gone", 1, expected=0)
    store.delete_alias("sentiment", "gone", expected=1)
    store.set_state("sentiment", 1, "retired")
    publish(store, "job-4", task="old")
    store.delete_task("old")
    store.put_task("empty", EXAMPLE_SPEC.model_copy(update={"labels": None}))


def registry(store: PromptStore) -> tuple[object, ...]:
    snapshot = store.snapshot()
    return snapshot.tasks, snapshot.versions, snapshot.aliases


def kinds(store: PromptStore) -> set[str]:
    return {problem.kind for problem in store.fsck().problems}


def test_fsck_of_a_store_in_order_finds_nothing(store: PromptStore) -> None:
    fill(store)
    report = store.fsck()
    assert report.problems == ()
    assert (report.tasks, report.versions, report.blobs) == (2, 3, 4)
    assert len(report.orphans) == 1  # the deleted task's


def test_rebuild_of_a_store_in_order_changes_nothing(store: PromptStore) -> None:
    fill(store)
    before, epoch = registry(store), store.epoch()
    assert store.rebuild().problems == ()
    assert (registry(store), store.epoch()) == (before, epoch)


def test_rebuild_when_the_server_forgot_everything_brings_everything_back(store: PromptStore, server: Server) -> None:
    fill(store)
    before, epoch = registry(store), store.epoch()
    server.forget()
    assert store.behind()
    report = store.rebuild()
    assert report.ok
    assert registry(store) == before
    assert store.epoch() > epoch
    assert not store.behind()
    assert store.fsck().problems == ()
    assert {event.task for event in store.events()} >= {"sentiment", "empty"}


def test_rebuild_keeps_numbers_publications_and_revisions_used(store: PromptStore, server: Server) -> None:
    fill(store)
    server.forget()
    store.rebuild()
    assert not publish(store, "job-2").created
    with pytest.raises(Conflict):
        publish(store, "job-4", task="old")
    assert publish(store, "job-5", task="old").version.number == 2
    assert publish(store, "job-6").version.number == 4
    assert store.move_alias("sentiment", "gone", 2, expected=0).revision == 2


def test_writes_when_the_server_is_behind_are_refused_until_it_is_rebuilt(store: PromptStore, server: Server) -> None:
    fill(store)
    server.forget()
    for write in (
        lambda: publish(store, "job-9"),
        lambda: store.put_task("new", EXAMPLE_SPEC),
        lambda: store.delete_task("sentiment"),
        lambda: store.set_state("sentiment", 1, "published"),
        lambda: store.append_evaluation("sentiment", 1, example_evaluation()),
        lambda: store.move_alias("sentiment", PROD, 1, expected=None),
        lambda: store.delete_alias("sentiment", PROD, expected=None),
        lambda: store.collect_orphans(grace_s=0),
    ):
        with pytest.raises(StoreBehind):
            write()
    store.rebuild()
    assert publish(store, "job-9").version.number == 4


def test_rebuild_when_the_server_returned_to_an_old_state_brings_it_forward(store: PromptStore, server: Server) -> None:
    fill(store)
    publish(store, "job-8", task="doomed")
    old = server.save()
    publish(store, "job-5", seed=5)
    store.append_evaluation("sentiment", 1, example_evaluation(0.1))
    store.delete_alias("sentiment", "canary", expected=None)
    store.put_task("empty", EXAMPLE_SPEC.model_copy(update={"labels": None, "description": "still"}))
    store.delete_task("doomed")
    before = registry(store)
    server.put_back(old)
    assert kinds(store) == {"behind", "stale_in_server", "missing_in_server"}
    assert store.rebuild().ok
    assert registry(store) == before
    assert store.fsck().problems == ()


def test_rebuild_when_a_name_was_taken_anew_buries_the_old_task(store: PromptStore, server: Server) -> None:
    publish(store, "job-1")
    old = server.save()
    store.delete_task("sentiment")
    publish(store, "job-2", seed=1)
    before = registry(store)
    server.put_back(old)
    assert store.rebuild().ok
    assert registry(store) == before
    assert store.fsck().problems == ()


def test_rebuild_when_two_tasks_of_one_name_are_on_file_keeps_the_newer(
    store: PromptStore, open_store: Callable[[Path], PromptStore], tmp_path: Path, server: Server
) -> None:
    """The record of the deletion in between was lost with its writer, and then the server forgot everything."""
    publish(store, "job-1")
    open_store(tmp_path / "elsewhere").delete_task("sentiment")
    publish(store, "job-2", seed=1)
    before = registry(store)
    server.forget()
    assert store.rebuild().ok
    assert registry(store) == before
    assert store.fsck().problems == ()
    with pytest.raises(Conflict):
        publish(store, "job-1")


def test_rebuild_when_files_miss_what_the_server_did_writes_them(
    store: PromptStore, open_store: Callable[[Path], PromptStore], tmp_path: Path, server: Server
) -> None:
    """A writer that dies between the server and its files leaves the files behind: as if it had used other files."""
    publish(store, "job-1")
    publish(store, "job-3", task="topic")
    publish(store, "job-4", task="taken")
    other = open_store(tmp_path / "elsewhere")
    publish(other, "job-2")
    other.set_state("sentiment", 1, "retired")
    other.delete_task("topic")
    other.delete_task("taken")
    publish(other, "job-5", task="taken")
    before = registry(store)
    assert kinds(store) == {"missing_record", "stale_record"}
    report = store.rebuild()
    assert report.ok
    assert registry(store) == before
    assert store.fsck().problems == ()
    server.forget()
    store.rebuild()
    assert registry(store) == before


@on_disk
def test_rebuild_when_record_files_are_damaged_writes_them_anew(store: PromptStore) -> None:
    fill(store)
    records = store.blobs.root / "records"
    for path in records.iterdir():
        if path.name != "lock":
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "unreadable_record" in kinds(store)
    report = store.rebuild()
    assert report.ok, report.problems
    assert store.fsck().problems == ()


@on_disk
def test_rebuild_when_a_record_is_lost_on_both_sides_says_so(store: PromptStore, server: Server) -> None:
    version = publish(store, "job-1").version
    server.forget()
    (store.blobs.root / "records" / f"task-{version.task_id}.json").write_bytes(b"")
    assert not store.rebuild().ok
    with pytest.raises(TaskNotFound):
        store.get_task("sentiment")
    assert publish(store, "job-2").version.number == 2


@on_disk
def test_fsck_names_blobs_that_are_missing_or_damaged(store: PromptStore) -> None:
    first, second = publish(store, "job-1").version, publish(store, "job-2", seed=1).version
    blobs = store.blobs.root / "blobs"
    (blobs / f"{first.digest}.safetensors").unlink()
    path = blobs / f"{second.digest}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    found = {(problem.kind, problem.subject) for problem in store.fsck().problems}
    assert found == {("missing_blob", "version sentiment@1"), ("corrupt_blob", "version sentiment@2")}
    assert not store.rebuild().ok


@on_disk
def test_publish_of_the_same_content_mends_a_damaged_blob(store: PromptStore) -> None:
    version = publish(store, "job-1").version
    path = store.blobs.root / "blobs" / f"{version.digest}.safetensors"
    path.write_bytes(b"rot")
    publish(store, "job-2")
    store.load(version)
    assert store.fsck().ok


def orphan(store: PromptStore, seed: int = 9) -> str:
    """A blob whose publisher died before its record."""
    publish(store, f"job-{seed}", task="doomed", seed=seed)
    digest = store.get_version("doomed", 1).digest
    store.delete_task("doomed")
    return digest


def age(store: PromptStore, digest: str, folder: str = "blobs") -> None:
    path = store.blobs.root / folder / f"{digest}.safetensors"
    long_ago = path.stat().st_mtime - 2 * DAY_S
    os.utime(path, (long_ago, long_ago))


@on_disk
def test_collect_orphans_takes_only_old_blobs_that_nothing_names(store: PromptStore) -> None:
    used = publish(store, "job-1").version
    digest = orphan(store)
    age(store, used.digest)
    assert store.collect_orphans(grace_s=DAY_S) == []
    age(store, digest)
    assert store.collect_orphans(grace_s=DAY_S) == [digest]
    with pytest.raises(BlobNotFound):
        store.read_blob(digest)
    store.load(used)
    assert store.fsck().problems == ()


@on_disk
def test_collect_orphans_deletes_for_good_only_after_another_grace_time(store: PromptStore) -> None:
    digest = orphan(store)
    age(store, digest)
    store.collect_orphans(grace_s=DAY_S)
    store.collect_orphans(grace_s=DAY_S)
    assert list(store.blobs.quarantined()) == [digest]
    age(store, digest, "quarantine")
    store.collect_orphans(grace_s=DAY_S)
    assert list(store.blobs.quarantined()) == []


def test_collect_orphans_brings_back_a_quarantined_blob_that_is_named_after_all(store: PromptStore) -> None:
    version = publish(store, "job-1").version
    store.blobs.quarantine(version.digest)  # as by a collector on a file system without locks
    assert store.collect_orphans(grace_s=DAY_S) == []
    store.load(version)
    store.blobs.quarantine(version.digest)
    assert store.rebuild().ok
    store.load(version)


def test_collect_orphans_keeps_blobs_that_only_a_record_file_names(
    store: PromptStore, open_store: Callable[[Path], PromptStore], tmp_path: Path
) -> None:
    version = publish(store, "job-1").version
    open_store(tmp_path / "elsewhere").delete_task("sentiment")
    assert store.collect_orphans(grace_s=0) == []
    store.load(version)
    store.rebuild()
    assert store.collect_orphans(grace_s=0) == [version.digest]


def test_collect_orphans_never_races_a_publisher_even_without_grace(store: PromptStore) -> None:
    """The same few contents are published, deleted and collected at once; no version is ever without its blob."""
    done = threading.Event()

    def collect() -> None:
        while not done.wait(0.003):
            store.collect_orphans(grace_s=0)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for job in range(30):
            version = publish(store, f"job-{job}", seed=job % 2).version
            store.load(version)
            if job % 3 == 0:
                store.delete_task("sentiment")
    finally:
        done.set()
        collector.join()
    assert store.fsck().problems == ()


@on_disk
def test_collect_orphans_removes_temporary_files_of_killed_publishers(store: PromptStore) -> None:
    publish(store, "job-1")
    for folder in ("blobs", "records"):
        (store.blobs.root / folder / ".tmp-1-dead").write_bytes(b"half")
    store.collect_orphans(grace_s=DAY_S)
    assert (store.blobs.root / "blobs" / ".tmp-1-dead").exists()
    store.collect_orphans(grace_s=0)
    assert not list(store.blobs.root.glob("*/.tmp-*"))
