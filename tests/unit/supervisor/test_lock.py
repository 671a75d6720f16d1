"""Promises of the folder lock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.supervisor.lock import FolderBusy, FolderLock, is_held, read_holder


def test_acquire_when_free_names_the_holder(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "lock")
    lock.acquire(url="http://here")
    assert read_holder(lock.path) == {"pid": os.getpid(), "url": "http://here"}
    assert is_held(lock.path)
    lock.release()
    assert not is_held(lock.path)


def test_acquire_when_held_says_who_holds_it(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path, "lock"), FolderLock(tmp_path, "lock")
    first.acquire(url="http://here")
    with pytest.raises(FolderBusy) as caught:
        second.acquire()
    assert caught.value.holder["pid"] == os.getpid()
    assert str(tmp_path) in str(caught.value)
    first.release()


def test_acquire_when_the_holder_is_killed_succeeds(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from app.supervisor.lock import FolderLock;"
        "FolderLock(Path(sys.argv[1]), 'lock').acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    FolderLock(tmp_path, "lock").acquire()


def test_read_holder_when_the_file_is_torn_is_empty(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('{"pid": 1')
    assert read_holder(tmp_path / "lock") == {}
    assert not is_held(tmp_path / "absent")
