"""The registry read from the records alone: what the server would say, whatever happens to be in the way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from prompt_store import NotFound, PromptStore, parse_ref, recorded_snapshot
from tests.contract.conftest import Server
from tests.contract.prompt_store_victim import publish_together
from tests.contract.test_prompt_store_care import fill, publish

everywhere = pytest.mark.parametrize(
    "setting", ["memory", "redis", "redis and objects", "memory and objects", "redis and s3"], indirect=True
)


@everywhere
def test_records_tell_what_the_server_tells(
    store: PromptStore, server: Server, open_store: Callable[[Path], PromptStore], tmp_path: Path
) -> None:
    fill(store)
    publish_together(store, "together", "ensemble", 7)
    known = store.snapshot()
    server.forget()
    found = recorded_snapshot(open_store(tmp_path / "store").records)
    assert found.states == known.states
    assert found.epoch == known.epoch
    assert len(found.alias("ensemble", "prod").versions) == 3
    for version in found.versions:
        assert store.load(version)


def test_nothing_recorded_is_no_empty_registry(store: PromptStore) -> None:
    with pytest.raises(NotFound):
        recorded_snapshot(store.records)


def test_write_without_its_records_is_not_known_and_takes_no_other_with_it(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "job-1")
    with monkeypatch.context() as patch:  # as if the writer died before its records
        patch.setattr(store.records, "write", lambda change: None)
        publish(store, "job-2", seed=1)
    store.move_alias("sentiment", "canary", 1, expected=0)
    found = recorded_snapshot(store.records)
    assert [version.number for version in found.versions] == [1]
    assert found.resolve(parse_ref("sentiment:canary")).number == 1


def test_version_published_while_records_are_read_is_whole_or_not_there(
    store: PromptStore, open_store: Callable[[Path], PromptStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another publishes between a read of the versions and one of the aliases, which then point beyond them."""
    publish(store, "job-1")
    read_all, reads = store.records.read_all, 0

    def torn() -> object:
        nonlocal reads
        reads += 1
        journal = read_all()
        if reads == 1:
            publish(open_store(tmp_path / "store"), "job-2", seed=1)
            journal.aliases = read_all().aliases
        return journal

    monkeypatch.setattr(store.records, "read_all", torn)
    found = recorded_snapshot(store.records)
    assert reads == 2
    assert found.resolve(parse_ref("sentiment")).number == 2


def test_alias_whose_version_cannot_be_read_is_left_out_and_told(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = publish(store, "job-1").version
    publish(store, "job-2", seed=1)
    store.move_alias("sentiment", "old", 1, expected=0)
    read_all = store.records.read_all

    def damaged() -> object:
        journal = read_all()
        del journal.versions[first.task_id, 2]
        journal.unreadable.append(f"version-{first.task_id}-2")
        return journal

    monkeypatch.setattr(store.records, "read_all", damaged)
    with caplog.at_level(logging.WARNING):
        found = recorded_snapshot(store.records)
    assert [alias.name for alias in found.aliases] == ["old"]
    assert found.versions == (first,)
    assert "records left out" in caplog.text
