"""kill -9 at every step of a joint publication: all of its versions, or nothing, for every reader and after a loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import redis

from prompt_store import PROD, BlobStore, PromptStore, RedisMetadata, Snapshot
from tests.contract.prompt_store_reader import Looking, reading
from tests.contract.prompt_store_stories import Story, victims
from tests.contract.prompt_store_victim import TOGETHER, publish_together


class Reader(Looking):
    """A replica that looks all the while: no snapshot may hold a part of a publication."""

    def __init__(self, store: PromptStore) -> None:
        super().__init__()
        self._store = store
        self.halves: list[Snapshot] = []
        self.epochs: set[int] = set()

    def look(self) -> None:
        snapshot = self._store.snapshot()
        self.epochs.add(snapshot.epoch)
        if snapshot.versions and not whole(snapshot):
            self.halves.append(snapshot)


def whole(snapshot: Snapshot) -> bool:
    """Every publication has all of its versions in a row, and `prod` is the ensemble of the last one's."""
    numbers = sorted(version.number for version in snapshot.versions)
    ensemble = snapshot.alias("sentiment", PROD).ensemble
    return (
        numbers == list(range(1, len(numbers) + 1))
        and len(numbers) % TOGETHER == 0
        and ensemble is not None
        and list(ensemble.members) == numbers[-TOGETHER:]
    )


def check_all_or_nothing(store: PromptStore, story: Story) -> int:
    """How many publications were made whose publisher did not live to hear it."""
    unheard = 0
    for key in story.begun:
        found = store.find_publications(key)
        assert len(found) in (0, TOGETHER), key
        for version in found:
            store.load(version)
            assert story.acked.get(version.publication, (version.number, version.digest))[0] == version.number
        unheard += bool(found) and key not in story.acked
    for key, (number, digest) in story.acked.items():
        version = store.get_version("sentiment", number)
        assert (version.publication, version.digest) == (key, digest)
    return unheard


def test_joint_publisher_when_killed_at_any_step_leaves_all_or_nothing(
    redis_url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with PromptStore(RedisMetadata(redis_url), BlobStore(tmp_path)) as store:
        reader = Reader(store)
        with reading(reader):
            story = victims(redis_url, tmp_path, "points", "together")
        assert reader.halves == []
        assert len(reader.epochs) > 5, "the reader saw the publications come"
        unheard = check_all_or_nothing(store, story)
        assert whole(store.snapshot())
        assert {problem.kind for problem in store.fsck().problems} <= {"missing_record", "stale_record"}
        check_again(store, story)
        store.collect_orphans(grace_s=0)
        assert store.fsck().problems == ()
        assert not list(tmp_path.glob("*/.tmp-*"))
    # every step but the last child's, which lived; it alone was acknowledged, three times
    assert story.deaths == len(story.begun) - 1 >= 25
    assert unheard >= 5
    assert len(story.acked) == TOGETHER
    record_property("tries", story.deaths)


def test_joint_publications_are_whole_after_the_server_forgot_them_too(
    redis_url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Killed between the record files, which are all that is left: what nobody was told of comes back whole, or not."""
    story = victims(redis_url, tmp_path, "points", "together")
    with PromptStore(RedisMetadata(redis_url), BlobStore(tmp_path)) as store:
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        store.rebuild()
        back = {version.number for version in store.snapshot().versions}
        check_all_or_nothing(store, story)
        assert len(back) >= TOGETHER
        assert store.fsck().problems == ()
        store.collect_orphans(grace_s=0)
        made = [publish_together(store, key, task, seed) for key, (task, seed) in story.begun.items()]
        assert all(len(one.versions) == TOGETHER for one in made)
        new = [version.number for one in made if one.created for version in one.versions]
        assert not back.intersection(new)
        assert min(new) > max(back), "numbers of what was left out stay used"
        check_all_or_nothing(store, story)
    record_property("tries", story.deaths)


def check_again(store: PromptStore, story: Story) -> None:
    """Whoever tries again gets what was made, or makes it, once."""
    for key, (task, seed) in story.begun.items():
        before = store.find_publications(key)
        made = publish_together(store, key, task, seed)
        assert made.created == (not before)
        assert before in ([], list(made.versions))
        assert not publish_together(store, key, task, seed).created
    snapshot = store.snapshot()
    assert len(snapshot.versions) == TOGETHER * len(story.begun)
    assert [version.number for version in snapshot.versions] == list(range(1, len(snapshot.versions) + 1))
    check_all_or_nothing(store, story)
