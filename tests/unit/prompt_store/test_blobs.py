"""Blobs on disk: written whole or not at all, verified whenever they are read."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prompt_store import (
    BlobNotFound,
    BlobStore,
    CorruptBlob,
    InvalidBlob,
    InvalidName,
    MemoryMetadata,
    PromptStore,
    StorageFailed,
    StorageFull,
    StoreUnavailable,
)
from prompt_store.durable import locked
from prompt_store.testing import EXAMPLE_SPEC, example_meta, example_tensors
from tests.full_disk import small_disk

DATA = bytes(range(256)) * 40


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def path_of(blobs: BlobStore, digest: str) -> Path:
    return blobs.root / "blobs" / f"{digest}.safetensors"


def leftovers(blobs: BlobStore) -> list[Path]:
    return list((blobs.root / "blobs").iterdir())


def test_put_names_the_blob_by_its_sha256_and_read_returns_it(blobs: BlobStore) -> None:
    digest = blobs.put(DATA)
    assert digest == hashlib.sha256(DATA).hexdigest()
    assert blobs.read(digest) == DATA
    assert leftovers(blobs) == [path_of(blobs, digest)]


def test_put_of_a_blob_that_is_there_touches_and_does_not_rewrite_it(blobs: BlobStore) -> None:
    digest = blobs.put(DATA)
    os.utime(path_of(blobs, digest), (0, 0))
    inode = path_of(blobs, digest).stat().st_ino
    assert blobs.put(DATA) == digest
    assert blobs.age_s(digest) < 60
    assert path_of(blobs, digest).stat().st_ino == inode


def test_put_from_many_threads_leaves_one_good_blob(blobs: BlobStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        digests = set(threads.map(blobs.put, [DATA] * 32))
    assert [blobs.read(digest) for digest in digests] == [DATA]
    assert len(leftovers(blobs)) == 1


def test_put_when_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidBlob):
        BlobStore(tmp_path, max_bytes=10).put(DATA)


def test_put_when_writes_are_short_writes_on(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    assert blobs.read(blobs.put(DATA)) == DATA


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_put_when_the_disk_refuses_leaves_nothing(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StoreUnavailable, match=os.strerror(code)) as caught:
            blobs.put(DATA)
        assert type(caught.value) is (StorageFull if code == errno.ENOSPC else StorageFailed)
    assert str(blobs.root) not in caught.value.message
    assert leftovers(blobs) == []
    blobs.put(DATA)


def test_put_when_the_disk_is_full_in_earnest_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """A disk of 64 KiB, filled by blobs until the system refuses one; what was there before is whole."""
    code = """
import os, sys
from pathlib import Path
from prompt_store import BlobStore, StorageFull
blobs = BlobStore(Path(sys.argv[1]))
kept = []
try:
    for n in range(100):
        kept.append(blobs.put(bytes([n]) * 6000))
except StorageFull as error:
    assert "No space left" in error.message, error.message
    assert sorted(os.listdir(blobs.root / "blobs")) == sorted(digest + ".safetensors" for digest in kept)
    assert [len(blobs.read(digest)) for digest in kept] == [6000] * len(kept)
    os.unlink(blobs.path(kept[0]))
    blobs.put(bytes([99]) * 6000)
    sys.exit(7)
"""
    disk = tmp_path / "disk"
    command = [*small_disk(disk, 64), sys.executable, "-c", code, str(disk)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 7


def test_put_when_the_folder_cannot_be_flushed_is_not_acknowledged(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the rename: the blob has its name, and may lose it with the power. Once it can be flushed, it is."""
    real, flushed = os.fsync, list[bool]()

    def fsync(fd: int) -> None:
        folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        flushed.append(folder)
        if folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for _ in range(2):  # the second finds the blob there, and must not take that for good
            with pytest.raises(StoreUnavailable, match=os.strerror(errno.EIO)):
                blobs.put(DATA)
    assert flushed == [False, True, True]
    assert blobs.read(blobs.put(DATA)) == DATA
    assert len(leftovers(blobs)) == 1


def test_publish_when_the_folder_cannot_be_flushed_makes_no_version(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real, meta = PromptStore(MemoryMetadata(), blobs), os.fsync, example_meta()

    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}") == str(blobs.root / "blobs"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    def publish() -> int:
        tensors = example_tensors(meta)
        made = store.publish(task="sentiment", meta=meta, tensors=tensors, publication="job-1", spec=EXAMPLE_SPEC)
        return made.version.number

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                publish()
    assert (store.epoch(), store.list_tasks()) == (0, ([], False))
    assert publish() == 1
    assert store.fsck().ok


def test_put_when_the_file_size_is_limited_is_refused_and_leaves_nothing(blobs: BlobStore) -> None:
    code = f"""
import resource, signal, sys
from pathlib import Path
from prompt_store import BlobStore, StoreUnavailable
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))
try:
    BlobStore(Path(sys.argv[1])).put(bytes(8192))
except StoreUnavailable:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code, str(blobs.root)], timeout=60, check=False)
    assert done.returncode == 7
    assert leftovers(blobs) == []


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(DATA[:-1]), id="cut"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(DATA[:5] + b"\xff" + DATA[6:]), id="one byte"),
        pytest.param(lambda path: path.write_bytes(DATA + b"x"), id="longer"),
    ],
)
def test_read_when_the_bytes_have_changed_is_refused(blobs: BlobStore, damage) -> None:
    digest = blobs.put(DATA)
    damage(path_of(blobs, digest))
    with pytest.raises(CorruptBlob):
        blobs.read(digest)
    assert blobs.put(DATA) == digest
    assert blobs.read(digest) == DATA


def symlink(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    target.write_bytes(DATA)
    path.symlink_to(target)


@pytest.mark.parametrize("make", [symlink, os.mkfifo, os.mkdir])
def test_read_when_no_regular_file_stands_there_is_refused_at_once(blobs: BlobStore, make) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    make(path_of(blobs, digest))
    started = time.monotonic()
    with pytest.raises(CorruptBlob, match="not a regular file"):
        blobs.read(digest)
    assert time.monotonic() - started < 5


def test_read_when_the_file_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path, max_bytes=1000)
    digest = "0" * 64
    with path_of(blobs, digest).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptBlob, match="limit is 1000"):
        blobs.read(digest)


def test_read_when_there_is_none_says_so(blobs: BlobStore) -> None:
    with pytest.raises(BlobNotFound):
        blobs.read("0" * 64)


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "0" * 63 + "/", "A" * 64])
def test_paths_are_made_of_digests_only(blobs: BlobStore, digest: str) -> None:
    for call in (blobs.read, blobs.exists, blobs.age_s, blobs.quarantine, blobs.bring_back, blobs.purge):
        with pytest.raises(InvalidName):
            call(digest)


def test_foreign_files_are_not_taken_for_blobs(blobs: BlobStore) -> None:
    for name in ("README", "x.safetensors", ".tmp-1", "0" * 64, "Z" * 64 + ".safetensors"):
        (blobs.root / "blobs" / name).touch()
    assert list(blobs.digests()) == []


def test_root_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable):
        BlobStore(tmp_path / "file" / "store")


def test_lock_keeps_collector_and_publishers_apart_but_not_publishers(blobs: BlobStore) -> None:
    def is_free(*, exclusive: bool) -> bool:
        try:
            with locked(blobs.root / "lock", exclusive=exclusive, timeout_s=0.03):
                return True
        except StoreUnavailable:
            return False

    with blobs.publishing():
        assert is_free(exclusive=False)
        assert not is_free(exclusive=True)
    with blobs.collecting():
        assert not is_free(exclusive=False)
    assert is_free(exclusive=True)
