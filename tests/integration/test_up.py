"""`chorus up` as a user runs it: real processes, killed and stopped in every way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from prompt_store import PromptStore
from prompt_store.models import BackboneRef, PromptMeta, TaskSpec

READY_S = 180.0  # generous: the machine may be busy with other tests
CHORUS = (sys.executable, "-m", "app")


@dataclass
class Running:
    """A started `chorus up` that said it is ready."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.facts["url"])

    def children(self) -> dict[int, str]:
        """Process id → command line of what `up` runs now."""
        return {pid: line for pid, (parent, line) in processes().items() if parent == self.process.pid}

    def pid_of(self, words: str) -> int | None:
        return next((pid for pid, line in self.children().items() if words in line), None)

    def kill(self, words: str) -> int:
        """Kill the child whose command line has `words`; returns its process id."""
        pid = self.pid_of(words)
        assert pid, self.children()
        os.kill(pid, signal.SIGKILL)
        return pid

    def answer(self, text: str = "hello") -> httpx.Response:
        return httpx.post(f"{self.url}/v1/tasks/echo/generate", json={"input": text, "max_tokens": 2}, timeout=60)


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHORUS_")}
    return {**inherited, "OMP_NUM_THREADS": "1", **more}


def start(data_dir: Path, *options: str) -> Running:
    argv = [*CHORUS, "up", "--json", "--port", "0", "--data-dir", str(data_dir), *options]
    with (data_dir.parent / "stderr").open("a") as stderr:
        process = subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"chorus up ended: {(data_dir.parent / 'stderr').read_text()}"
    return Running(process, json.loads(line))


def run(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHORUS, *argv], env=environment(**variables), capture_output=True, text=True, timeout=READY_S, check=False
    )


def publish_echo(data_dir: Path, running: Running) -> None:
    """Register a task with a hand-written prompt, as a trainer on this machine would."""
    backbone = httpx.get(f"{running.url}/health", timeout=60).json()["backbone"]
    reference = BackboneRef(name=backbone["name"], fingerprint=backbone["fingerprint"], hidden_size=256)
    meta = PromptMeta(
        task="echo",
        template="{text}",
        bos="after_prompt",
        method={"type": "hard"},
        backbone=reference,
        num_virtual_tokens=0,
    )
    spec = TaskSpec(fields=("text",), metric="exact_match")
    with PromptStore.open(running.facts["redis_url"], data_dir / "blobs") as store:
        store.publish(task="echo", meta=meta, tensors={}, publication="test", alias_revision=None, spec=spec)
    wait_for(lambda: running.answer().status_code == 200)


def wait_for(condition: Callable[[], bool], timeout_s: float = READY_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def processes() -> dict[int, tuple[int, str]]:
    """Process id → (parent, command line) of all that run; a process that only waits to be reaped does not run."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,state=,args="], capture_output=True, text=True, check=True
    )
    rows = (line.split(None, 3) for line in listed.stdout.splitlines())
    return {int(pid): (int(parent), "".join(rest)) for pid, parent, state, *rest in rows if state[0] not in "ZX"}


def is_running(pid: int) -> bool:
    return pid in processes()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "data"


@pytest.fixture(scope="module")
def up(data_dir: Path) -> Iterator[Running]:
    running = start(data_dir)
    try:
        publish_echo(data_dir, running)
        yield running
    finally:
        stop(running)


def test_up_runs_server_api_and_worker_and_says_where(up: Running) -> None:
    lines = list(up.children().values())
    assert len(lines) == 3
    for words in ("valkey-server", " serve", " worker"):
        assert any(words in line for line in lines)
    assert httpx.get(up.facts["docs"]).status_code == 200


def test_up_when_the_data_folder_is_in_use_says_who_has_it(up: Running, data_dir: Path) -> None:
    second = run("up", "--port", "0", "--data-dir", str(data_dir))
    assert second.returncode == 2
    assert f"process {up.process.pid} at {up.url}" in second.stderr
    assert up.answer().status_code == 200


def test_up_when_the_port_is_busy_says_in_one_line_which_option_frees_it(up: Running, tmp_path: Path) -> None:
    port = up.url.rpartition(":")[2]
    second = run("up", "--port", port, "--data-dir", str(tmp_path / "data"))
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert port in line
    assert "--port" in line


def test_commands_talk_to_the_running_service(up: Running) -> None:
    assert "echo" in run("tasks", CHORUS_URL=up.url).stdout
    answer = json.loads(run("generate", "echo", "hello", "--max-tokens", "2", "--json", "--url", up.url).stdout)
    assert answer["outputs"][0]["version"] == 1
    moved = run("alias", "echo", "canary", "1", "--url", up.url)
    assert moved.returncode == 0, moved.stderr
    assert run("generate", "echo:canary", "hello", "--url", up.url).returncode == 0
    assert run("generate", "absent", "hello", "--url", up.url).returncode == 4


def test_fsck_beside_the_running_service_finds_all_in_order(up: Running, data_dir: Path) -> None:
    checked = run("fsck", "--json", "--data-dir", str(data_dir))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert json.loads(checked.stdout)["versions"] >= 1


def test_up_when_the_worker_is_killed_starts_another(up: Running) -> None:
    before = up.kill(" worker")
    wait_for(lambda: up.pid_of(" worker") not in (None, before))
    assert up.answer().status_code == 200


def test_up_when_the_api_is_killed_starts_it_again_with_all_it_knew(up: Running) -> None:
    known = [task["name"] for task in httpx.get(f"{up.url}/v1/tasks", timeout=60).json()["data"]]
    before = up.kill(" serve")
    wait_for(lambda: up.pid_of(" serve") not in (None, before))
    wait_for(lambda: is_ready(up))
    answer = up.answer()
    assert (answer.status_code, answer.json()["outputs"][0]["version"]) == (200, 1)
    assert [task["name"] for task in httpx.get(f"{up.url}/v1/tasks", timeout=60).json()["data"]] == known


def is_ready(up: Running) -> bool:
    try:
        return httpx.get(f"{up.url}/readyz", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def test_up_when_the_server_is_killed_the_api_keeps_answering(up: Running) -> None:
    before = up.kill("valkey-server")
    codes = {up.answer().status_code for _ in range(10)}
    assert codes == {200}
    wait_for(lambda: up.pid_of("valkey-server") not in (None, before))
    wait_for(lambda: httpx.get(f"{up.url}/readyz").json() == {"status": "ready", "degraded": False})


def test_up_when_killed_leaves_nothing_running_and_keeps_its_state(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    first = start(data_dir)
    publish_echo(data_dir, first)
    left = list(first.children())
    first.process.kill()
    first.process.wait()
    wait_for(lambda: not any(is_running(pid) for pid in left), timeout_s=5)

    second = start(data_dir)
    assert second.answer().status_code == 200
    left = list(second.children())
    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(READY_S) == 0
    assert not any(is_running(pid) for pid in left)
    stopped = [line for line in (tmp_path / "stderr").read_text().splitlines() if "Stopping" in line]
    assert [line.rpartition(" the ")[2].split()[0] for line in stopped] == ["API", "worker", "embedded"]
    for running in (first, second):
        assert running.process.stdout is not None
        running.process.stdout.close()


def test_up_when_the_model_is_refused_says_why_and_does_not_try_again(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    ended = run("up", "--port", "0", "--data-dir", str(tmp_path / "data"), "--model", str(tmp_path / "model"))
    assert ended.returncode == 1
    assert "has no config.json" in ended.stderr
    assert "starting it again" not in ended.stdout + ended.stderr


def test_up_when_no_redis_answers_says_so_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = run("up", "--data-dir", str(tmp_path), CHORUS_REDIS_URL=f"redis://:secret@127.0.0.1:{port}/0")
    assert ended.returncode == 2
    assert "no Redis answers" in ended.stderr
    assert "secret" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "/absent"], "--model bundled"),
        (["--host", "0.0.0.0"], "chorus keys create"),
        (["--data-dir", "/proc/x"], "--data-dir"),
    ],
)
def test_up_when_an_option_cannot_work_names_what_does(tmp_path: Path, options: list[str], words: str) -> None:
    ended = run("up", "--port", "0", "--data-dir", str(tmp_path / "data"), *options)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_up_beyond_this_machine_takes_a_made_key_and_asks_for_it(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    made = run("keys", "create", "--scope", "generate", "--data-dir", str(data_dir), "--json")
    key = json.loads(made.stdout)
    running = start(data_dir, "--host", "0.0.0.0")
    try:
        url = running.url
        assert httpx.get(f"{url}/v1/tasks", timeout=60).status_code == 401
        sent = {"authorization": f"Bearer {key['key']}"}
        assert httpx.get(f"{url}/v1/tasks", headers=sent, timeout=60).status_code == 200
        assert httpx.put(f"{url}/v1/tasks/x", json={"fields": ["text"]}, headers=sent, timeout=60).status_code == 403
        assert len(running.facts["tasks"]) > 0, "the run asks its own API with a key that nobody else knows"
        run("keys", "revoke", key["id"], "--data-dir", str(data_dir))
        deadline = time.monotonic() + 5
        while httpx.get(f"{url}/v1/tasks", headers=sent, timeout=60).status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        stop(running)
    kept = b"".join(file.read_bytes() for file in data_dir.rglob("*") if file.is_file())
    assert key["key"].rpartition("_")[2].encode() not in kept


def test_up_whose_server_lost_its_files_brings_back_every_version(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    first = start(data_dir)
    try:
        publish_echo(data_dir, first)
    finally:
        stop(first)
    shutil.rmtree(data_dir / "redis")
    second = start(data_dir)
    try:
        answer = second.answer()
        assert answer.status_code == 200
        assert answer.json()["outputs"][0]["version"] == 1
        assert httpx.get(f"{second.url}/health", timeout=60).json()["status"] == "ok"
    finally:
        stop(second)


def stop(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(READY_S)
    assert running.process.stdout is not None
    running.process.stdout.close()
