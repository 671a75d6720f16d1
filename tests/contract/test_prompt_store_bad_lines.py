"""A line to the server that drips byte by byte, stutters, or is cut anywhere within a reply."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prompt_store import BlobStore, PromptStore, RedisMetadata, StoreUnavailable
from prompt_store.testing import EXAMPLE_SPEC, example_meta, example_tensors

TASKS = 12
SEED = 20


class Line:
    """A TCP server in front of a Unix socket. `spoil` is told each piece of a reply and returns what is passed on, in
    pieces; None after it cuts the connection."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.spoil: Callable[[bytes], Iterator[bytes | None]] = whole
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in (self._listener, *self._open):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            self._open += [client, server]
            for work in (self._ask, self._answer):
                threading.Thread(target=work, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while request := client.recv(1 << 16):
                server.sendall(request)
        except OSError:
            pass
        finally:
            _shut(server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while reply := server.recv(1 << 16):
                for piece in self.spoil(reply):
                    if piece is None:
                        return
                    client.sendall(piece)
        except OSError:
            pass
        finally:
            _shut(client)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def whole(reply: bytes) -> Iterator[bytes | None]:
    yield reply


def dripping(reply: bytes) -> Iterator[bytes | None]:
    """Byte by byte, now and then with a pause."""
    for place in range(len(reply)):
        yield reply[place : place + 1]
        if place % 997 == 0:
            time.sleep(0.001)


class Cutting:
    """Cuts a share of the replies at a random place."""

    def __init__(self, share: float) -> None:
        self._dice, self._share = random.Random(SEED), share
        self.cuts = 0

    def __call__(self, reply: bytes) -> Iterator[bytes | None]:
        if self._dice.random() < self._share:
            self.cuts += 1
            yield reply[: self._dice.randrange(len(reply))]
            yield None
        else:
            yield reply


@pytest.fixture
def line(redis_url: str) -> Iterator[Line]:
    line = Line(redis_url.removeprefix("unix://"))
    yield line
    line.close()


def publish(store: PromptStore, name: str, key: str) -> int:
    meta = example_meta(name)
    tensors = example_tensors(meta, 1)
    return store.publish(task=name, meta=meta, tensors=tensors, publication=key, spec=EXAMPLE_SPEC).version.number


def fill(store: PromptStore) -> list[str]:
    names = [f"task-{number}" for number in range(TASKS)]
    for name in names:
        publish(store, name, f"{name}-first")
    return names


def test_reads_over_a_line_that_drips_are_whole(redis_url: str, line: Line, tmp_path: Path) -> None:
    with PromptStore(RedisMetadata(redis_url), BlobStore(tmp_path)) as store:
        names, wanted = fill(store), store.snapshot()
    line.spoil = dripping
    with PromptStore(RedisMetadata(line.url, timeout_s=5), BlobStore(tmp_path)) as store:
        assert store.snapshot() == wanted
        assert [store.get_version(name, 1).task for name in names] == names
        assert publish(store, names[0], "second") == 2


def test_replies_cut_anywhere_are_never_taken_for_another_calls(
    redis_url: str, line: Line, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with PromptStore(RedisMetadata(redis_url), BlobStore(tmp_path)) as store:
        names = fill(store)
    line.spoil = cutting = Cutting(0.2)
    refused = published = 0
    with PromptStore(RedisMetadata(line.url, timeout_s=2), BlobStore(tmp_path)) as store:
        for turn in range(150):
            name = names[turn % TASKS]
            try:
                version = store.get_version(name, 1)
                assert (version.task, version.publication) == (name, f"{name}-first")
                if turn % 10 == 0:
                    publish(store, name, f"{name}-{turn}")
                    published += 1
            except StoreUnavailable:
                refused += 1
    record_property("tries", cutting.cuts)
    assert cutting.cuts > 15
    with PromptStore(RedisMetadata(redis_url), BlobStore(tmp_path)) as store:
        made = sum(len(store.list_versions(name)[0]) for name in names)
        assert TASKS + published <= made <= TASKS + published + refused
        # a call that was refused may have been made: what it left out is made up for
        assert {problem.kind for problem in store.fsck().problems} <= {"missing_record", "stale_record"}
        assert store.rebuild().ok
