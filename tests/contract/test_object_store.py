"""Blobs and records in an object store: what is durable, what is served when the store is away, what care finds there.

What a folder and an object store have in common is in the other files of this folder, which run over both.
"""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from prompt_store import (
    BlobNotFound,
    BlobStore,
    CorruptBlob,
    InvalidBlob,
    InvalidBlobsUrl,
    InvalidName,
    MemoryMetadata,
    ObjectStore,
    PromptStore,
    RemoteBlobStore,
    StoreUnavailable,
    TaskNotFound,
)
from prompt_store.objects import ObjectMissing, ObjectTooLong
from prompt_store.testing import EXAMPLE_SPEC
from tests.contract.conftest import Server
from tests.contract.test_prompt_store_care import DAY_S, fill, kinds, orphan, publish, registry

DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()
remote = pytest.mark.parametrize("setting", ["memory and objects", "redis and s3"], indirect=True)


def objects_of(store: PromptStore) -> ObjectStore:
    assert isinstance(store.blobs, RemoteBlobStore)
    return store.blobs.objects


def blob(digest: str, folder: str = "blobs") -> str:
    return f"{folder}/{digest}.safetensors"


def forget_copies(store: PromptStore) -> None:
    for path in (store.blobs.root / "blobs").iterdir():
        path.unlink()


@pytest.fixture
def age(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes objects whose name holds a text two days old."""
    old: set[str] = set()
    true_age = ObjectStore.age_s
    monkeypatch.setattr(
        ObjectStore, "age_s", lambda self, name: true_age(self, name) + 2 * DAY_S * any(text in name for text in old)
    )
    return old.add


@remote
def test_published_version_is_read_on_another_machine_and_copied_there(
    store: PromptStore, open_store: Callable[[Path], PromptStore], tmp_path: Path
) -> None:
    version = publish(store, "job-1").version
    other = open_store(tmp_path / "store")
    assert other.blobs.root != store.blobs.root
    assert other.read_blob(version.digest) == store.read_blob(version.digest)
    assert list(BlobStore(other.blobs.root).digests()) == [version.digest]
    assert other.fsck().problems == ()


@remote
def test_blob_is_durable_before_the_server_hears_of_it(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[set[str]] = []
    told = store.metadata.publish
    monkeypatch.setattr(
        store.metadata,
        "publish",
        lambda *args, **more: (seen.append(set(store.blobs.digests())), told(*args, **more))[1],
    )
    version = publish(store, "job-1").version
    assert seen == [{version.digest}]


@remote
@pytest.mark.parametrize("damage", [DATA[:-1], b"", DATA[:5] + b"\xff" + DATA[6:], DATA + b"x"])
def test_read_when_the_object_has_changed_is_refused(store: PromptStore, damage: bytes) -> None:
    store.blobs.put(DATA)
    forget_copies(store)
    objects_of(store).put(blob(DIGEST), damage)
    with pytest.raises(CorruptBlob):
        store.read_blob(DIGEST)
    assert list(BlobStore(store.blobs.root).digests()) == []
    store.blobs.put(DATA)
    assert store.read_blob(DIGEST) == DATA


@remote
def test_read_when_the_object_is_too_large_is_refused(store: PromptStore) -> None:
    store.blobs.put(DATA)
    forget_copies(store)
    store.blobs.max_bytes = 1000
    with pytest.raises(CorruptBlob, match="limit is 1000"):
        store.read_blob(DIGEST)
    with pytest.raises(InvalidBlob):
        store.blobs.put(DATA)


@remote
def test_read_when_the_copy_has_rotted_takes_the_object_and_mends_the_copy(store: PromptStore) -> None:
    store.blobs.put(DATA)
    copy = store.blobs.root / blob(DIGEST)
    copy.write_bytes(b"rot")
    assert store.read_blob(DIGEST) == DATA
    assert copy.read_bytes() == DATA


@remote
def test_read_of_what_is_nowhere_says_so(store: PromptStore) -> None:
    with pytest.raises(BlobNotFound):
        store.read_blob("0" * 64)
    for call in (store.blobs.quarantine, store.blobs.age_s, store.blobs.bring_back, store.blobs.quarantine_age_s):
        with pytest.raises(BlobNotFound):
            call("0" * 64)
    for name in ("../../etc/passwd", "", "A" * 64):
        with pytest.raises(InvalidName):
            store.read_blob(name)


@remote
def test_copies_are_bounded_and_the_one_used_last_stays(store: PromptStore) -> None:
    front = store.blobs.root
    small = RemoteBlobStore(objects_of(store), front, cache_bytes=2500)
    first, second, third = (small.put(bytes([number]) * 1000) for number in range(3))
    assert set(BlobStore(front).digests()) == {second, third}
    small.read(second)
    time.sleep(0.02)
    small.read(first)
    time.sleep(0.02)
    small.read(second)
    small.read(third)
    assert second in set(BlobStore(front).digests())
    assert {len(small.read(digest)) for digest in (first, second, third)} == {1000}


@remote
def test_copies_that_cannot_be_kept_do_not_matter(store: PromptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreUnavailable("No space left on device")

    monkeypatch.setattr(BlobStore, "put", full)
    assert store.read_blob(publish(store, "job-1").version.digest)
    assert list((store.blobs.root / "blobs").iterdir()) == []


@remote
def test_rebuild_when_records_are_damaged_writes_them_anew(store: PromptStore) -> None:
    fill(store)
    objects = objects_of(store)
    for name in objects.names("records"):
        data = objects.get(f"records/{name}", limit=1 << 20)
        objects.put(f"records/{name}", data[:-1] + b"?")
    assert "unreadable_record" in kinds(store)
    report = store.rebuild()
    assert report.ok, report.problems
    assert store.fsck().problems == ()


@remote
def test_rebuild_when_a_record_is_lost_on_both_sides_says_so(store: PromptStore, server: Server) -> None:
    version = publish(store, "job-1").version
    server.forget()
    objects = objects_of(store)
    for epoch in objects.names(f"records/task-{version.task_id}"):
        objects.put(f"records/task-{version.task_id}/{epoch}", b"")
    assert not store.rebuild().ok
    with pytest.raises(TaskNotFound):
        store.get_task("sentiment")
    assert publish(store, "job-2").version.number == 2


@remote
def test_old_states_of_records_are_removed_and_an_older_one_never_counts(store: PromptStore, server: Server) -> None:
    fill(store)
    objects = objects_of(store)
    subjects = [name.rpartition("/")[0] for name in objects.names("records")]
    assert len(subjects) == len(set(subjects))
    before = registry(store)
    for name in objects.names("records"):  # as left by a writer that died before it removed them
        subject, _, _ = name.rpartition("/")
        objects.put(f"records/{subject}/{0:020}", b"of long ago")
    server.forget()
    assert store.rebuild().ok
    assert registry(store) == before


@remote
def test_records_of_a_deleted_task_go_with_it(store: PromptStore) -> None:
    version = publish(store, "job-1").version
    store.delete_task("sentiment")
    assert {name.partition("/")[0] for name in objects_of(store).names("records")} == {
        "epoch",
        f"task-{version.task_id}",
    }


@remote
def test_fsck_looks_at_the_objects_and_rebuild_mends_them_from_copies(store: PromptStore) -> None:
    first, second = publish(store, "job-1").version, publish(store, "job-2", seed=1).version
    objects = objects_of(store)
    objects.delete(blob(first.digest))
    objects.put(blob(second.digest), b"rot")
    found = {(problem.kind, problem.subject) for problem in store.fsck().problems}
    assert found == {("missing_blob", "version sentiment@1"), ("corrupt_blob", "version sentiment@2")}
    store.load(first)
    store.load(second)  # both from copies
    assert {problem.kind for problem in store.rebuild().problems} == {"corrupt_blob"}
    publish(store, "job-3", seed=1)
    assert store.fsck().problems == ()


@remote
def test_collect_orphans_takes_only_old_blobs_that_nothing_names(
    store: PromptStore, age: Callable[[str], None]
) -> None:
    used = publish(store, "job-1").version
    digest = orphan(store)
    age(used.digest)
    assert store.collect_orphans(grace_s=DAY_S) == []
    age(f"blobs/{digest}")
    assert store.collect_orphans(grace_s=DAY_S) == [digest]
    assert not store.blobs.exists(digest)
    store.collect_orphans(grace_s=DAY_S)
    assert list(store.blobs.quarantined()) == [digest]
    age(f"quarantine/{digest}")
    store.collect_orphans(grace_s=DAY_S)
    assert list(store.blobs.quarantined()) == []
    forget_copies(store)
    with pytest.raises(BlobNotFound):
        store.read_blob(digest)
    assert store.fsck().problems == ()


@remote
def test_version_whose_blob_a_collector_took_elsewhere_is_served_until_the_next_run(
    store: PromptStore, open_store: Callable[[Path], PromptStore], tmp_path: Path
) -> None:
    """A collector of another machine looked before the record was there, and moved after it."""
    version = publish(store, "job-1").version
    store.blobs.quarantine(version.digest)
    store.blobs.purge_temporaries(older_than_s=0)
    fresh = open_store(tmp_path / "store")
    fresh.load(version)
    assert not fresh.blobs.exists(version.digest)
    assert fresh.collect_orphans(grace_s=0) == []
    assert fresh.blobs.exists(version.digest)
    assert fresh.fsck().problems == ()


@pytest.mark.parametrize("setting", ["memory and objects"], indirect=True)
@pytest.mark.parametrize("inner", ["collector", "publisher"])
def test_collector_of_another_machine_at_any_step_never_costs_a_version_its_blob(
    open_store: Callable[[Path], PromptStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    """They share no lock. An old orphan is published again; at each step of the one, the other does all of its work."""
    steps = 0
    for step in range(100):
        place = tmp_path / "store"
        publisher, collector = open_store(place), open_store(place)
        old = {blob(publish(publisher, f"job-{step}", task="doomed", seed=step).version.digest)}
        publisher.delete_task("doomed")

        def collect(store: PromptStore = collector) -> None:
            store.collect_orphans(grace_s=DAY_S)

        def publish_again(store: PromptStore = publisher, seed: int = step) -> None:
            publish(store, f"again-{seed}", task="doomed", seed=seed)

        outer, other = (publish_again, collect) if inner == "collector" else (collect, publish_again)
        with monkeypatch.context() as patch:
            interrupted = interrupt(patch, step, other, old)
            outer()
        if not interrupted:
            other()
        fresh = open_store(place)
        fresh.load(fresh.list_versions("doomed")[0][-1])
        fresh.collect_orphans(grace_s=DAY_S)
        assert fresh.fsck().problems == ()
        fresh.delete_task("doomed")
        for folder in ("blobs", "quarantine"):  # or each round's collector would have more to do
            for name in objects_of(fresh).names(folder):
                objects_of(fresh).delete(f"{folder}/{name}")
        steps = step
        if not interrupted:
            break
    assert 3 < steps < 99


def interrupt(patch: pytest.MonkeyPatch, step: int, other: Callable[[], None], old: set[str]) -> list[int]:
    """Calls `other` once before the call of number `step` on any object store; objects in `old` are two days old until
    they are written again. Returns a list that is filled when it has happened."""
    calls, happened = iter(range(10_000)), list[int]()
    true_age = ObjectStore.age_s

    def watched(name: str) -> Callable[..., object]:
        method = getattr(ObjectStore, name)

        def call(self: ObjectStore, *args: object, **options: object) -> object:
            if not happened and next(calls) == step:
                happened.append(step)
                other()
            if name == "put":
                old.discard(str(args[0]))
            return method(self, *args, **options)

        return call

    patch.setattr(ObjectStore, "age_s", lambda self, name: true_age(self, name) + 2 * DAY_S * (name in old))
    for name in ("put", "get", "get_many", "names", "exists", "copy", "delete", "age_s"):
        patch.setattr(ObjectStore, name, watched(name))
    return happened


@remote
def test_records_from_many_threads_leave_the_newest_of_each(
    open_store: Callable[[Path], PromptStore], tmp_path: Path, server: Server
) -> None:
    stores = [open_store(tmp_path / "store") for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda job: publish(stores[job % 3], f"job-{job}", seed=job), range(9)))
    before = registry(stores[0])
    server.forget()
    assert stores[1].rebuild().ok
    assert registry(stores[2]) == before


# the store is away


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, s3_url: str) -> Callable[[], None]:
    """From now on, new connections find nobody."""

    def leave() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")

    return leave


def test_when_s3_is_away_copies_are_served_and_publishing_fails_typed_and_loses_nothing(
    nowhere: Callable[[], None], s3_url: str, tmp_path: Path
) -> None:
    metadata = MemoryMetadata()
    store = PromptStore(metadata, RemoteBlobStore(ObjectStore(s3_url), tmp_path / "front"))
    version = publish(store, "job-1").version
    nowhere()
    cut_off = PromptStore(metadata, RemoteBlobStore(ObjectStore(s3_url), tmp_path / "front"))
    assert cut_off.load(version)
    before = cut_off.snapshot()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="object store") as caught:
        publish(cut_off, "job-2", seed=1)
    assert time.monotonic() - started < 60
    assert "test-secret-of-s3" not in caught.value.message
    assert "127.0.0.1" not in caught.value.message
    assert cut_off.snapshot() == before
    with pytest.raises(StoreUnavailable):
        cut_off.collect_orphans(grace_s=0)
    with pytest.raises(StoreUnavailable):
        cut_off.read_blob("0" * 64)
    assert publish(store, "job-2", seed=1).version.number == 2
    assert store.fsck().problems == ()


def test_when_the_records_cannot_be_written_the_same_call_may_be_made_again(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PromptStore(MemoryMetadata(), RemoteBlobStore(ObjectStore(s3_url), tmp_path / "front"))
    put = ObjectStore.put

    def refuse(self: ObjectStore, name: str, data: bytes) -> None:
        if name.startswith("records/"):
            raise StoreUnavailable("object store: away")
        put(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "put", refuse)
        with pytest.raises(StoreUnavailable):
            publish(store, "job-1")
    again = publish(store, "job-1")
    assert (again.version.number, again.created) == (1, False)
    assert store.fsck().problems == ()


def test_publication_costs_two_dozen_round_trips_at_most(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PromptStore(MemoryMetadata(), RemoteBlobStore(ObjectStore(s3_url), tmp_path / "front"))
    publish(store, "job-1")
    calls: list[str] = []
    call = S3FileSystem._call_s3

    async def counted(self: S3FileSystem, method: str, *args: object, **options: object) -> object:
        calls.append(method)
        return await call(self, method, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(S3FileSystem, "_call_s3", counted)
        publish(store, "job-2", seed=1)
    assert 5 < len(calls) <= 24
    assert calls.count("put_object") == 4  # the blob, and the records of version, aliases and epoch


def test_bucket_that_does_not_exist_is_unavailable_and_not_empty(s3_url: str, tmp_path: Path) -> None:
    store = PromptStore(MemoryMetadata(), RemoteBlobStore(ObjectStore("s3://no-such-bucket"), tmp_path))
    with pytest.raises(StoreUnavailable):
        publish(store, "job-1")
    assert store.epoch() == 0


# objects and addresses


@pytest.fixture(params=["memory", "s3"])
def objects(request: pytest.FixtureRequest) -> ObjectStore:
    url = request.getfixturevalue("s3_url") if request.param == "s3" else "memory://objects/of/tests"
    return ObjectStore(url)


def test_objects_are_whole_listed_at_once_and_bounded(objects: ObjectStore) -> None:
    objects.put("one/a", b"1")
    objects.put("one/b/c", b"22")
    objects.put("onemore", b"3")
    assert objects.names("one") == ["a", "b/c"]
    assert objects.names("nothing") == []
    assert objects.get_many(["one/a", "one/x", "one/b/c"]) == {"one/a": b"1", "one/x": None, "one/b/c": b"22"}
    assert objects.get_many([]) == {}
    assert objects.get("one/b/c", limit=2) == b"22"
    with pytest.raises(ObjectTooLong):
        objects.get("one/b/c", limit=1)
    assert 0 <= objects.age_s("one/a") + 1 < 60
    objects.copy("one/a", "two/a")
    objects.delete("one/a")
    objects.delete("one/a")
    assert (objects.exists("one/a"), objects.exists("two/a")) == (False, True)
    for call in (objects.age_s, lambda name: objects.get(name, limit=9), lambda name: objects.copy(name, "three")):
        with pytest.raises(ObjectMissing):
            call("one/a")


@pytest.mark.parametrize(
    "url",
    ["", "s3://", "s3://b/../c", "s3://B", "http://example.com/x", "/data/blobs", "file:///data", "s3://k:s@bucket/x"]
    + ["s3://bucket/a b", "s3://bucket//x", "gs://bucket", "s3://bucket/x?y=1"],
)
def test_url_that_is_not_of_the_form_is_refused(url: str) -> None:
    with pytest.raises(InvalidBlobsUrl, match="not of the form"):
        ObjectStore(url)


def test_url_when_the_library_is_missing_names_the_fix() -> None:
    code = """
import sys
sys.modules["s3fs"] = None
from prompt_store import InvalidBlobsUrl, ObjectStore
try:
    ObjectStore("s3://bucket")
except InvalidBlobsUrl as error:
    print(error.message)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "pip install 'chorus-serve[s3]'" in said


def test_folder_alone_loads_no_library_of_object_stores(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from prompt_store import PromptStore
PromptStore.open("redis://127.0.0.1:1", Path({str(tmp_path)!r}))
assert not {{"fsspec", "s3fs", "botocore"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_spec_of_a_task_survives_the_loss_of_server_and_copies(s3_url: str, tmp_path: Path) -> None:
    first = PromptStore(MemoryMetadata(), RemoteBlobStore(ObjectStore(s3_url), tmp_path / "lost"))
    version = publish(first, "job-1").version
    fresh = PromptStore(MemoryMetadata(), RemoteBlobStore(ObjectStore(s3_url), tmp_path / "new"))
    assert fresh.rebuild().ok
    assert fresh.get_task("sentiment").spec == EXAMPLE_SPEC
    assert fresh.get_version("sentiment", 1) == version
    fresh.load(version)
