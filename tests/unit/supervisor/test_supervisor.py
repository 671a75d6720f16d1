"""Promises of the supervisor: order, restart, giving up, stopping."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from app.supervisor import Child, GaveUp, Supervisor
from tests.unit.supervisor.conftest import is_running, wait_for

STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def act_beside(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def run(children: Sequence[Child], when_ready: Callable[[Supervisor], None]) -> list[str]:
    """Run until `when_ready`, on a thread beside, has asked for a stop; returns what the supervisor said."""
    said: list[str] = []
    supervisor = Supervisor(children, said.append)
    supervisor.run(lambda: act_beside(lambda: when_ready(supervisor)) and None)
    return said


def test_run_when_stopped_ends_all_in_reverse_order(make_child: Callable[..., Child]) -> None:
    first, second = make_child(name="first"), make_child(name="second")
    said = run([first, second], Supervisor.request_stop)
    assert said == ["Stopping the second …", "Stopping the first …"]
    assert first.pid is None
    assert second.pid is None


def test_run_when_an_order_is_given_stops_in_it(make_child: Callable[..., Child]) -> None:
    first, second, third = (make_child(name=name) for name in ("first", "second", "third"))
    said: list[str] = []
    supervisor = Supervisor([first, second, third], said.append, stop_order=[second, third, first])
    supervisor.run(supervisor.request_stop)
    assert said == ["Stopping the second …", "Stopping the third …", "Stopping the first …"]


def test_run_starts_the_second_only_when_the_first_is_ready(make_child: Callable[..., Child], tmp_path: Path) -> None:
    mark = tmp_path / "ready"
    first = make_child(
        f"import time; time.sleep(0.2); open({str(mark)!r}, 'w').close(); time.sleep(60)", ready=mark.exists
    )
    second = make_child(
        f"import os, sys; print(os.path.exists({str(mark)!r}), flush=True); sys.stdin.read()\nwhile 1: 0"
    )
    run([first, second], lambda supervisor: (wait_for(lambda: bool(second.log.tail)), supervisor.request_stop())[1])
    assert second.log.tail[0] == "True"


def test_run_when_a_child_is_killed_starts_it_again(make_child: Callable[..., Child]) -> None:
    child, neighbour = make_child(), make_child(name="neighbour")

    def disturb(supervisor: Supervisor) -> None:
        wait_for(lambda: len(child.log.tail) == 1)
        neighbour_pid = neighbour.pid
        before = child.pid
        assert before is not None
        child.kill()
        wait_for(lambda: child.pid not in (None, before))
        assert neighbour.pid == neighbour_pid
        supervisor.request_stop()

    said = run([child, neighbour], disturb)
    assert said[0].startswith("the child ended (killed by SIGKILL); starting it again")


def test_run_when_a_child_fails_again_and_again_gives_up_with_its_last_words(make_child: Callable[..., Child]) -> None:
    neighbour = make_child(name="neighbour")
    failing = make_child("import sys; sys.exit('no such model')", name="failing")
    with pytest.raises(GaveUp, match="the failing does not stay up") as caught:
        Supervisor([neighbour, failing], lambda _line: None).run(lambda: None)
    assert caught.value.lines[-1] == "no such model"
    assert neighbour.pid is None


def test_run_when_stop_is_asked_twice_ends_all_at_once(make_child: Callable[..., Child]) -> None:
    stubborn = make_child(STUBBORN, stop_s=60.0)

    def stop_twice(supervisor: Supervisor) -> None:
        wait_for(lambda: bool(stubborn.log.tail))
        supervisor.request_stop()
        supervisor.request_stop()

    run([stubborn], stop_twice)
    assert stubborn.returncode == -9


def test_run_when_a_child_does_not_stop_in_its_grace_kills_it(make_child: Callable[..., Child]) -> None:
    stubborn = make_child(STUBBORN, stop_s=0.1)

    def stop(supervisor: Supervisor) -> None:
        wait_for(lambda: bool(stubborn.log.tail))
        supervisor.request_stop()

    said = run([stubborn], stop)
    assert any("did not stop within" in line for line in said)
    assert stubborn.returncode == -9


def test_run_when_something_breaks_leaves_nothing_running(make_child: Callable[..., Child]) -> None:
    child = make_child()
    pids: list[int] = []

    def fail() -> None:
        pids.append(child.pid or 0)
        raise ValueError("in the banner")

    with pytest.raises(ValueError, match="in the banner"):
        Supervisor([child], lambda _line: None).run(fail)
    assert not is_running(pids[0])
