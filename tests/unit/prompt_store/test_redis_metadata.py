"""A metadata server that is away, hangs, drops connections mid-reply or speaks the older protocol."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from prompt_store import BlobStore, CorruptRecord, PromptStore, RedisMetadata, Snapshot, StoreUnavailable, keys
from prompt_store.testing import EXAMPLE_SPEC, example_evaluation, example_meta, example_tensors


class Proxy:
    """A TCP server in front of a Unix socket. `drop_reply` cuts the connection instead of passing on the next reply
    to a command that contains the given bytes."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._drop: bytes | None = None
        self._open: list[socket.socket] = []
        self.dropped = 0
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def drop_reply(self, command: bytes) -> None:
        self._drop = command

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            self._open += [client, server]
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while request := client.recv(1 << 20):
                server.sendall(request)
                reply = server.recv(1 << 20)
                if self._drop is not None and self._drop in request:
                    self._drop = None
                    self.dropped += 1
                    break
                client.sendall(reply)
        except OSError:
            pass
        for connection in (client, server):
            connection.close()


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with closing(Proxy(redis_url.removeprefix("unix://"))) as proxy:
        yield proxy


def open_store(url: str, folder: Path) -> PromptStore:
    return PromptStore(RedisMetadata(url, timeout_s=0.5), BlobStore(folder))


def publish(store: PromptStore, publication: str):
    meta = example_meta()
    return store.publish(
        task="sentiment", meta=meta, tensors=example_tensors(meta), publication=publication, spec=EXAMPLE_SPEC
    )


def every_call(store: PromptStore) -> list[Callable[[], object]]:
    return [
        lambda: publish(store, "job-1"),
        lambda: store.put_task("sentiment", EXAMPLE_SPEC),
        lambda: store.delete_task("sentiment"),
        lambda: store.move_alias("sentiment", "prod", 1, expected=None),
        lambda: store.get_task("sentiment"),
        lambda: store.list_tasks(),
        lambda: store.list_versions("sentiment"),
        lambda: store.find_publication("job-1"),
        lambda: store.epoch(),
        lambda: store.events(),
        lambda: store.snapshot(),
        lambda: store.delta(Snapshot()),
        lambda: store.rebuild(),
        lambda: store.collect_orphans(grace_s=0),
    ]


def test_every_call_when_the_server_is_away_is_unavailable(tmp_path: Path) -> None:
    with open_store(f"unix://{tmp_path}/nobody", tmp_path / "store") as store:
        for call in every_call(store):
            with pytest.raises(StoreUnavailable) as caught:
                call()
            assert str(tmp_path) not in caught.value.message


def test_call_when_the_server_hangs_gives_up_in_time(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with PromptStore(RedisMetadata(url, timeout_s=0.05), BlobStore(tmp_path)) as store:
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                store.epoch()
            assert time.monotonic() - started < 5


def test_publish_when_the_reply_is_lost_is_retried_and_commits_once(proxy: Proxy, tmp_path: Path) -> None:
    with open_store(proxy.url, tmp_path) as store:
        publish(store, "job-1")
        proxy.drop_reply(b"EVALSHA")
        made = publish(store, "job-2")
        assert proxy.dropped == 1
        assert (made.version.number, made.created) == (2, False)
        assert len(store.list_versions("sentiment")[0]) == 2
        assert store.fsck().ok


def test_ensure_task_when_the_reply_is_lost_still_says_that_it_created_the_task(proxy: Proxy, tmp_path: Path) -> None:
    with open_store(proxy.url, tmp_path) as store:
        store.ensure_task("other", EXAMPLE_SPEC)  # the script is known
        proxy.drop_reply(b"EVALSHA")
        assert store.ensure_task("sentiment", EXAMPLE_SPEC)[1]
        assert proxy.dropped == 1


def test_move_alias_when_the_reply_is_lost_is_tried_once_and_says_so(proxy: Proxy, tmp_path: Path) -> None:
    with open_store(proxy.url, tmp_path) as store:
        publish(store, "job-1")
        store.move_alias("sentiment", "prod", 1, expected=1)
        proxy.drop_reply(b"EVALSHA")
        with pytest.raises(StoreUnavailable, match="not known"):
            store.move_alias("sentiment", "prod", 1, expected=2)
        assert store.get_alias("sentiment", "prod").revision == 3
        assert not store.fsck().ok  # the record file does not have it
        assert store.rebuild().ok
        assert store.fsck().ok


def test_reads_when_a_connection_drops_are_retried(proxy: Proxy, tmp_path: Path) -> None:
    with open_store(proxy.url, tmp_path) as store:
        publish(store, "job-1")
        for call, command in ((store.epoch, b"GET"), (store.snapshot, b"HGETALL"), (store.events, b"XREAD")):
            proxy.drop_reply(command)
            call()
        assert proxy.dropped == 3


DAMAGES: dict[str, tuple[str, Callable[[str], str | bytes]]] = {
    "a field of a newer format": (keys.TASKS, lambda line: line.replace('{"description"', '{"novel":1,"description"')),
    "a line without its parts": (keys.TASKS, lambda line: line.partition("\n")[0]),
    "a version that is no JSON": (keys.VERSIONS, lambda body: body[:-1]),
    "a version that is a list": (keys.VERSIONS, lambda _: "[1]"),
    "a version without a digest": (keys.VERSIONS, lambda body: body.replace('"digest"', '"digests"')),
    "a state that is none": (keys.STATES, lambda _: "retried"),
    "a card that is none": (keys.CARDS, lambda _: "{}"),
    "aliases without a target": (keys.ALIASES, lambda _: "prod 1 0.0"),
    "a target without numbers": (keys.ALIASES, lambda _: "prod 1 0.0 vote:a,b"),
    "bytes that are no text": (keys.TASKS, lambda _: b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_reads_when_a_record_cannot_be_read_say_so_in_one_way(redis_url: str, tmp_path: Path, damage: str) -> None:
    key, spoil = DAMAGES[damage]
    with open_store(redis_url, tmp_path) as store, redis.Redis.from_url(redis_url, decode_responses=True) as client:
        publish(store, "job-1")
        store.append_evaluation("sentiment", 1, example_evaluation())
        before = store.snapshot()
        ((field, value),) = client.hgetall(key).items()  # type: ignore[union-attr]
        client.hset(key, field, spoil(value))  # type: ignore[arg-type]
        store.put_task("neighbour", EXAMPLE_SPEC)
        assert store.get_task("neighbour").spec == EXAMPLE_SPEC
        with pytest.raises(CorruptRecord) as caught:
            store.snapshot()
        assert "positive" not in caught.value.message
        assert store.delta(before) is not None  # no event names what was spoilt
        client.hset(key, field, value)
        assert "sentiment" in store.snapshot().states


def test_delta_when_a_record_cannot_be_read_says_so(redis_url: str, tmp_path: Path) -> None:
    with open_store(redis_url, tmp_path) as store, redis.Redis.from_url(redis_url, decode_responses=True) as client:
        before = store.snapshot()
        store.put_task("sentiment", EXAMPLE_SPEC)
        client.hset(keys.TASKS, "sentiment", "x")
        for call in (lambda: store.delta(before), lambda: store.get_task("sentiment"), store.list_tasks):
            with pytest.raises(CorruptRecord, match="sentiment"):
                call()


def test_epoch_when_it_is_no_number_says_so(redis_url: str, tmp_path: Path) -> None:
    with open_store(redis_url, tmp_path) as store, redis.Redis.from_url(redis_url) as client:
        client.set(keys.EPOCH, "many")
        with pytest.raises(CorruptRecord):
            store.epoch()


def test_scripts_when_the_server_forgot_them_are_loaded_again(redis_url: str, tmp_path: Path) -> None:
    with open_store(redis_url, tmp_path) as store:
        publish(store, "job-1")
        with redis.Redis.from_url(redis_url) as client:
            client.script_flush()
        assert publish(store, "job-2").version.number == 2


def test_store_when_speaking_the_older_protocol_works_the_same(redis_url: str, tmp_path: Path) -> None:
    with open_store(f"{redis_url}?protocol=2", tmp_path / "store") as store:
        publish(store, "job-1")
        after = store.snapshot().last_event_id
        assert store.events(after, block_ms=10) == []
        publish(store, "job-2")
        assert [event.kind for event in store.events(after, block_ms=10)] == ["version", "alias"]
        assert len(store.events()) == 5


def test_events_when_waiting_longer_than_the_socket_timeout_wait(redis_url: str, tmp_path: Path) -> None:
    with PromptStore(RedisMetadata(redis_url, timeout_s=0.2), BlobStore(tmp_path)) as store:
        started = time.monotonic()
        assert store.events(block_ms=600) == []
        assert time.monotonic() - started >= 0.59


def test_writes_when_memory_is_full_are_unavailable_and_lose_nothing(redis_url: str, tmp_path: Path) -> None:
    with open_store(redis_url, tmp_path) as store, redis.Redis.from_url(redis_url) as client:
        made = publish(store, "job-1")
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreUnavailable):
                publish(store, "job-2")
        finally:
            client.config_set("maxmemory", 0)
        assert store.list_versions("sentiment") == ([made.version], False)
        assert publish(store, "job-2").version.number == 2
