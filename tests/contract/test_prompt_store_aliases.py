"""What every metadata server promises of aliases (compare-and-set), events and snapshots."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prompt_store import (
    PROD,
    AliasNotFound,
    Conflict,
    InvalidName,
    PromptStore,
    RevisionMismatch,
    Snapshot,
    TaskNotFound,
    VersionNotFound,
    parse_ref,
)
from prompt_store.testing import EXAMPLE_SPEC, with_versions


@pytest.fixture
def published(store: PromptStore) -> PromptStore:
    """Three versions of one task; `prod` points to the third at revision 3."""
    return with_versions(store, 3)


def test_move_alias_when_the_revision_is_expected_moves_it(published: PromptStore) -> None:
    alias = published.move_alias("sentiment", PROD, 1, expected=3)
    assert (alias.version, alias.revision) == (1, 4)
    assert published.get_alias("sentiment", PROD) == alias
    assert published.resolve(parse_ref("sentiment")).number == 1
    event = published.events()[-1]
    assert (event.kind, event.alias, event.version, event.epoch) == ("alias", PROD, 1, published.epoch())


@pytest.mark.parametrize("expected", [0, 2, 4])
def test_move_alias_when_the_revision_differs_changes_nothing(published: PromptStore, expected: int) -> None:
    epoch = published.epoch()
    with pytest.raises(RevisionMismatch) as caught:
        published.move_alias("sentiment", PROD, 1, expected=expected)
    assert caught.value.current == 3
    assert (published.get_alias("sentiment", PROD).version, published.epoch()) == (3, epoch)


def test_move_alias_when_unchecked_moves_whatever_is_there(published: PromptStore) -> None:
    assert published.move_alias("sentiment", PROD, 2, expected=None).revision == 4
    assert published.move_alias("sentiment", "canary", 2, expected=None).revision == 1
    assert [alias.name for alias in published.list_aliases("sentiment")] == ["canary", PROD]


def test_move_alias_when_it_must_not_exist_creates_it_once(published: PromptStore) -> None:
    assert published.move_alias("sentiment", "canary", 1, expected=0).revision == 1
    with pytest.raises(RevisionMismatch):
        published.move_alias("sentiment", "canary", 2, expected=0)


def test_move_alias_from_many_threads_lets_one_win_each_revision(published: PromptStore) -> None:
    def move(version: int) -> bool:
        try:
            published.move_alias("sentiment", PROD, version, expected=3)
        except RevisionMismatch:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(move, [1, 2, 3] * 4))
    assert sum(won) == 1


def test_move_alias_to_what_is_not_there_or_not_fit_is_refused(published: PromptStore) -> None:
    with pytest.raises(VersionNotFound):
        published.move_alias("sentiment", PROD, 9, expected=None)
    with pytest.raises(TaskNotFound):
        published.move_alias("topic", PROD, 1, expected=None)
    published.retire_version("sentiment", 1)
    published.set_state("sentiment", 2, "quarantined")
    for number in (1, 2):
        with pytest.raises(Conflict):
            published.move_alias("sentiment", PROD, number, expected=None)
    assert published.get_alias("sentiment", PROD).revision == 3


def test_delete_alias_when_recreated_does_not_repeat_a_revision(published: PromptStore) -> None:
    published.move_alias("sentiment", "canary", 1, expected=0)
    with pytest.raises(RevisionMismatch):
        published.delete_alias("sentiment", "canary", expected=2)
    published.delete_alias("sentiment", "canary", expected=1)
    with pytest.raises(AliasNotFound):
        published.get_alias("sentiment", "canary")
    with pytest.raises(AliasNotFound):
        published.delete_alias("sentiment", "canary", expected=None)
    assert published.events()[-1].kind == "alias_deleted"
    assert published.move_alias("sentiment", "canary", 2, expected=0).revision == 2
    with pytest.raises(RevisionMismatch):
        published.move_alias("sentiment", "canary", 3, expected=1)


def test_events_when_read_in_pages_are_all_there_in_order(published: PromptStore) -> None:
    everything = published.events()
    assert [event.epoch for event in everything] == [1, 1, 1, 2, 2, 3, 3]
    paged, after = [], "0"
    while page := published.events(after, limit=2):
        paged += page
        after = page[-1].id
    assert paged == everything


def test_events_when_waiting_returns_as_soon_as_something_happens(published: PromptStore) -> None:
    after = published.snapshot().last_event_id
    assert published.events(after, block_ms=20) == []
    mover = threading.Timer(0.05, lambda: published.move_alias("sentiment", PROD, 1, expected=None))
    mover.start()
    events = published.events(after, block_ms=20_000)
    mover.join()
    assert [event.kind for event in events] == ["alias"]


@pytest.mark.parametrize("after", ["", "$", "-", "1-2-3", "x", "1\n"])
def test_events_when_the_place_is_not_of_its_form_is_refused(store: PromptStore, after: str) -> None:
    with pytest.raises(InvalidName):
        store.events(after)


def test_snapshot_says_what_the_store_says(published: PromptStore, tmp_path: Path) -> None:
    published.move_alias("sentiment", "canary", 1, expected=0)
    published.move_alias("sentiment", "gone", 1, expected=0)
    published.delete_alias("sentiment", "gone", expected=None)
    published.put_task("topic", EXAMPLE_SPEC)
    snapshot = published.snapshot()
    assert snapshot.epoch == published.epoch()
    assert snapshot.last_event_id == published.events()[-1].id
    assert list(snapshot.tasks) == published.list_tasks()[0]
    assert list(snapshot.versions) == published.list_versions("sentiment")[0]
    assert list(snapshot.aliases) == published.list_aliases("sentiment")
    for text in ("sentiment", "sentiment@2", "sentiment:canary"):
        assert snapshot.resolve(parse_ref(text)) == published.resolve(parse_ref(text))
    with pytest.raises(TaskNotFound):
        snapshot.resolve(parse_ref("nli"))
    with pytest.raises(AliasNotFound):
        snapshot.resolve(parse_ref("sentiment:gone"))
    with pytest.raises(VersionNotFound):
        snapshot.resolve(parse_ref("sentiment@4"))
    snapshot.save(tmp_path / "manifest")
    assert Snapshot.load(tmp_path / "manifest") == snapshot


def test_snapshot_of_an_empty_store_is_empty(store: PromptStore) -> None:
    snapshot = store.snapshot()
    assert (snapshot.epoch, snapshot.last_event_id, snapshot.tasks) == (0, "0", ())
