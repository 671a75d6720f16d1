"""Following the registry by what its events name: equal to reading everything, or a word that it is not enough."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from prompt_store import PromptStore, Snapshot
from prompt_store.metadata import Restoration
from prompt_store.testing import EXAMPLE_SPEC, example_evaluation, example_meta, example_tensors
from tests.contract.conftest import Server


def publish(store: PromptStore, publication: str, task: str = "sentiment", alias: str | None = "prod") -> None:
    meta = example_meta(task)
    store.publish(
        task=task,
        meta=meta,
        tensors=example_tensors(meta),
        publication=publication,
        alias=alias,
        spec=EXAMPLE_SPEC,
    )


def follow(store: PromptStore, known: Snapshot) -> Snapshot:
    delta = store.delta(known)
    assert delta is not None
    return known.after(delta)


def test_delta_when_nothing_happened_leaves_the_snapshot_itself(store: PromptStore) -> None:
    publish(store, "job-1")
    known = store.snapshot()
    assert follow(store, known) is known


def test_delta_from_the_beginning_is_the_whole_registry(store: PromptStore) -> None:
    publish(store, "job-1")
    publish(store, "job-2", task="topic")
    assert follow(store, Snapshot()) == store.snapshot()


def test_delta_when_one_task_changed_shares_the_others(store: PromptStore) -> None:
    publish(store, "job-1")
    publish(store, "job-2", task="topic")
    known = store.snapshot()
    publish(store, "job-3")
    after = follow(store, known)
    assert after == store.snapshot()
    assert after.states["topic"] is known.states["topic"]
    assert after.version("sentiment", 1) is known.version("sentiment", 1)
    assert [version.number for version in known.versions if version.task == "sentiment"] == [1]


def test_delta_tells_states_cards_and_deleted_aliases(store: PromptStore) -> None:
    publish(store, "job-1")
    publish(store, "job-2", alias="canary")
    known = store.snapshot()
    store.delete_alias("sentiment", "canary", expected=None)
    store.set_state("sentiment", 2, "retired")
    store.append_evaluation("sentiment", 1, example_evaluation())
    after = follow(store, known)
    assert after == store.snapshot()
    assert after.version("sentiment", 2).state == "retired"
    assert len(after.version("sentiment", 1).card) == 1
    assert [alias.name for alias in after.aliases] == ["prod"]


def test_delta_when_a_deleted_name_returned_holds_nothing_of_the_old_task(store: PromptStore) -> None:
    publish(store, "job-1")
    publish(store, "job-2")
    known = store.snapshot()
    store.delete_task("sentiment")
    publish(store, "job-3")
    after = follow(store, known)
    assert after == store.snapshot()
    assert [version.number for version in after.versions] == [3]


def test_delta_when_a_task_is_deleted_drops_it(store: PromptStore) -> None:
    publish(store, "job-1")
    known = store.snapshot()
    store.delete_task("sentiment")
    assert follow(store, known).states == {}


def test_delta_when_the_registry_was_rebuilt_says_to_read_everything(store: PromptStore, server: Server) -> None:
    publish(store, "job-1")
    known = store.snapshot()
    server.forget()
    store.rebuild()
    assert store.delta(known) is None
    assert store.delta(Snapshot()) is None
    publish(store, "job-2")
    assert store.delta(known) is None


def test_delta_when_records_were_restored_says_to_read_everything(store: PromptStore) -> None:
    publish(store, "job-1")
    known, dump = store.snapshot(), store.metadata.dump()
    restoration = Restoration(epoch=known.epoch, at=0.0, entries=dump.entries, versions=dump.versions)
    store.metadata.restore(restoration, expected_epoch=known.epoch)
    assert store.delta(known) is None


def test_delta_when_too_much_happened_says_to_read_everything(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = store.snapshot()
    publish(store, "job-1")  # three events
    for module in ("metadata", "redis_metadata"):
        monkeypatch.setattr(f"prompt_store.{module}.MAX_DELTA", 3)
    assert store.delta(known) is not None
    store.set_state("sentiment", 1, "candidate")
    assert store.delta(known) is None


def test_delta_when_the_stream_was_trimmed_says_to_read_everything(redis_url: str, tmp_path: Path) -> None:
    with PromptStore.open(redis_url, tmp_path) as store, redis.Redis.from_url(redis_url) as client:
        publish(store, "job-1")
        known = store.snapshot()
        publish(store, "job-2")
        client.xtrim("chorus:events", maxlen=1, approximate=False)
        assert store.delta(known) is None
        assert store.delta(Snapshot()) is None
        assert follow(store, store.snapshot()) == store.snapshot()
        client.xtrim("chorus:events", maxlen=0, approximate=False)
        assert store.delta(Snapshot()) is None
