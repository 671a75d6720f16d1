"""Promises of one supervised process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.supervisor import Child
from app.supervisor.child import LAUNCHER, describe_exit
from tests.unit.supervisor.conftest import is_running, wait_for

PARENT = """
import sys
from pathlib import Path
from app.supervisor import Child, ChildSpec
from app.supervisor.logs import ProcessLog
import time
spec = ChildSpec(name="c", title="c", argv=(sys.executable, "-I", "-S", "-c",
    "import os, time; print(os.getpid(), flush=True); time.sleep(60)"))
child = Child(spec, ProcessLog("c", Path(sys.argv[1]), None), kernel_ties=sys.argv[2] == "kernel")
child.start()
while not child.log.tail:
    time.sleep(0.01)
print(child.log.tail[0], flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("tie", ["kernel", "keeper"])
def test_child_when_its_parent_is_killed_dies_too(tmp_path: Path, tie: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), tie], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_for(lambda: not is_running(pid))


@pytest.mark.parametrize("kernel_ties", [True, False])
def test_terminate_when_the_program_obeys_ends_it(make_child: Callable[..., Child], kernel_ties: bool) -> None:
    child = make_child(kernel_ties=kernel_ties)
    child.start()
    wait_for(lambda: bool(child.log.tail))
    child.terminate()
    assert child.wait(10)
    assert child.returncode == -15
    assert child.pid is None


def test_kill_when_it_has_children_of_its_own_ends_all(make_child: Callable[..., Child]) -> None:
    child = make_child(
        "import os, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    child.start()
    wait_for(lambda: bool(child.log.tail))
    grandchild = int(child.log.tail[0])
    assert is_running(grandchild)
    child.kill()
    wait_for(lambda: not is_running(grandchild))


def test_start_when_it_ended_runs_it_anew(make_child: Callable[..., Child]) -> None:
    child = make_child("print('hello')")
    for _ in range(2):
        child.start()
        assert child.wait(10)
        assert child.read_last_words() == ["hello"]
    assert child.returncode == 0


def test_start_when_the_program_is_missing_says_so(make_child: Callable[..., Child], tmp_path: Path) -> None:
    child = make_child()
    object.__setattr__(child.spec, "argv", (str(tmp_path / "absent"),))
    child.start()
    assert child.wait(10)
    assert child.returncode == 127
    assert "No such file" in child.read_last_words()[0]


def test_launcher_when_the_parent_is_already_gone_starts_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    program = ["/bin/sh", "-c", f"touch {mark}"]
    argv = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid() + 1), "-1", *program]
    assert subprocess.run(argv, check=False).returncode == 127
    assert not mark.exists()


@pytest.mark.parametrize(("status", "words"), [(3, "exit status 3"), (-9, "killed by SIGKILL"), (-99, "signal 99")])
def test_describe_exit_for_a_status_is_in_words(status: int, words: str) -> None:
    assert words in describe_exit(status)
