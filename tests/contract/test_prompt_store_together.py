"""What every metadata server promises of publishing several versions with their ensemble: all at once, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prompt_store import (
    PROD,
    AliasTarget,
    Conflict,
    Ensemble,
    Fenced,
    InvalidBlob,
    InvalidName,
    JointPublication,
    NewPrompt,
    PromptStore,
    RemoteBlobStore,
    RevisionMismatch,
    TaskNotFound,
    VersionInUse,
)
from prompt_store.testing import (
    EXAMPLE_SPEC,
    example_evaluation,
    example_meta,
    example_tensors,
    with_versions,
)
from tests.contract.conftest import Server


def prompts(count: int = 3, *, seed: int = 0) -> list[NewPrompt]:
    meta = example_meta()
    return [
        NewPrompt(meta, example_tensors(meta, seed + place), [example_evaluation(0.9 - place / 10)])
        for place in range(count)
    ]


def publish(
    store: PromptStore, publication: str, given: Sequence[NewPrompt] | None = None, **options: Any
) -> JointPublication:
    options = {"spec": EXAMPLE_SPEC} | options
    return store.publish_together(task="sentiment", prompts=given or prompts(), publication=publication, **options)


def members(*numbers: int, mode: Any = "vote") -> Ensemble:
    return Ensemble(members=numbers, mode=mode)


def test_versions_and_their_ensemble_are_made_in_one_epoch(store: PromptStore) -> None:
    made = publish(store, "job-1")
    assert made.created
    assert [version.number for version in made.versions] == [1, 2, 3]
    assert [version.card[0].score for version in made.versions] == pytest.approx([0.9, 0.8, 0.7])
    assert {version.state for version in made.versions} == {"published"}
    assert made.alias is not None
    assert (made.alias.name, made.alias.ensemble, made.alias.revision) == (PROD, members(1, 2, 3), 1)
    assert [version.publication for version in made.versions] == ["job-1", "job-1#2", "job-1#3"]
    told = [(event.kind, event.version, event.epoch) for event in store.events()]
    assert told == [("task", None, 1), ("version", 1, 1), ("version", 2, 1), ("version", 3, 1), ("alias", None, 1)]
    assert store.list_versions("sentiment")[0] == list(made.versions)
    for version in made.versions:
        store.load(version)


def test_made_together_again_they_are_found_and_nothing_changes(store: PromptStore) -> None:
    first = publish(store, "job-1")
    publish(store, "job-2")
    epoch = store.epoch()
    again = publish(store, "job-1", prompts(2, seed=7), alias_revision=77)
    assert not again.created
    assert again.versions == first.versions
    assert store.epoch() == epoch
    assert store.get_alias("sentiment", PROD).ensemble == members(4, 5, 6)
    assert store.find_publications("job-1") == list(first.versions)
    assert store.find_publication("job-1") == first.versions[0]
    assert store.find_publications("job-3") == []


def test_one_key_stands_for_one_publication_of_either_form(store: PromptStore) -> None:
    together = publish(store, "job-1")
    meta = example_meta()
    alone = store.publish(task="sentiment", meta=meta, tensors=example_tensors(meta, 9), publication="job-1")
    assert (alone.created, alone.version) == (False, together.versions[0])
    single = store.publish(task="sentiment", meta=meta, tensors=example_tensors(meta, 9), publication="job-2")
    assert publish(store, "job-2").versions == (single.version,)
    with pytest.raises(InvalidName):
        store.publish(task="sentiment", meta=meta, tensors=example_tensors(meta), publication="job-3#2")


def test_first_versions_under_another_alias_are_prod_too(store: PromptStore) -> None:
    made = publish(store, "job-1", alias="canary", mode="mean")
    assert made.alias is not None
    assert (made.alias.name, made.alias.ensemble) == ("canary", members(1, 2, 3, mode="mean"))
    assert store.get_alias("sentiment", PROD).ensemble == members(1, 2, 3, mode="mean")
    publish(store, "job-2", alias="canary")
    assert store.get_alias("sentiment", PROD).versions == (1, 2, 3)


def test_candidates_move_no_alias(store: PromptStore) -> None:
    made = publish(store, "job-1", alias=None, state="candidate")
    assert (made.alias, store.list_aliases("sentiment")) == (None, [])
    assert {version.state for version in made.versions} == {"candidate"}


def test_ensemble_takes_the_place_of_a_version_and_holds_its_members(store: PromptStore) -> None:
    with_versions(store, 2)
    made = publish(store, "sweep", alias_revision=2)
    assert made.alias is not None
    assert (made.alias.versions, made.alias.revision) == ((3, 4, 5), 3)
    with pytest.raises(VersionInUse):
        store.retire_version("sentiment", 4)
    assert store.retire_version("sentiment", 2).state == "retired"


def test_refused_publication_leaves_no_version(store: PromptStore) -> None:
    with pytest.raises(TaskNotFound):
        publish(store, "job-1", spec=None)
    with_versions(store, 1)
    epoch = store.epoch()
    with pytest.raises(RevisionMismatch) as caught:
        publish(store, "job-1", alias_revision=2)
    assert caught.value.current == 1
    store.raise_fence("job-1", 5)
    with pytest.raises(Fenced):
        publish(store, "job-1", fence=4)
    with pytest.raises(Conflict):
        publish(store, "job-1", state="retired")
    broken = [*prompts(1), NewPrompt(example_meta(), {})]
    with pytest.raises(InvalidBlob):
        publish(store, "job-1", broken)
    elsewhere = [*prompts(1), NewPrompt(example_meta("topic"), example_tensors(example_meta("topic")))]
    with pytest.raises(InvalidBlob):
        publish(store, "job-1", elsewhere)
    assert store.epoch() == epoch
    assert store.find_publications("job-1") == []
    assert len(store.collect_orphans(grace_s=0)) == 2  # written before the server refused
    assert publish(store, "job-1", fence=5).versions[0].number == 2


@pytest.mark.parametrize("count", [1, 17])
def test_as_many_are_made_together_as_an_ensemble_may_have(store: PromptStore, count: int) -> None:
    with pytest.raises(InvalidBlob, match=f"{count} prompts"):
        publish(store, "job-1", prompts(count))


def test_sixteen_are_made_together(store: PromptStore) -> None:
    assert publish(store, "job-1", prompts(16)).alias == store.get_alias("sentiment", PROD)
    assert [version.number for version in store.find_publications("job-1")] == list(range(1, 17))


def test_publication_of_a_deleted_task_is_not_made_again(store: PromptStore) -> None:
    publish(store, "job-1")
    store.delete_task("sentiment")
    assert store.find_publications("job-1") == []
    with pytest.raises(Conflict):
        publish(store, "job-1")
    assert [version.number for version in publish(store, "job-2").versions] == [4, 5, 6]


def test_from_many_threads_each_makes_its_versions_in_a_row(store: PromptStore) -> None:
    with ThreadPoolExecutor(6) as threads:
        made = list(threads.map(lambda job: publish(store, f"job-{job % 6}", prompts(seed=job)), range(12)))
    assert sum(one.created for one in made) == 6
    rows = {tuple(version.number for version in one.versions) for one in made}
    assert rows == {(first, first + 1, first + 2) for first in range(1, 19, 3)}
    assert store.fsck().problems == ()


def test_follower_sees_the_alias_and_its_versions_at_once(store: PromptStore) -> None:
    with_versions(store, 1)
    known = store.snapshot()
    publish(store, "sweep")
    delta = store.delta(known)
    assert delta is not None
    after = known.after(delta)
    assert after == store.snapshot()
    assert after.alias("sentiment", PROD).ensemble == members(2, 3, 4)


def test_server_that_forgot_learns_them_from_the_record_files(
    store: PromptStore, server: Server, open_store: Callable[[Path], PromptStore], tmp_path: Path
) -> None:
    made = publish(store, "job-1")
    before = store.snapshot()
    server.forget()
    fresh = open_store(tmp_path / "store")
    fresh.rebuild()
    assert fresh.snapshot().states == before.states
    assert fresh.get_alias("sentiment", PROD).ensemble == AliasTarget(ensemble=members(1, 2, 3)).ensemble
    assert publish(fresh, "job-1").versions == made.versions


def test_when_the_first_ones_record_is_damaged_too_the_others_come_back(store: PromptStore, server: Server) -> None:
    """It was acknowledged: it is not what a writer left that died halfway."""
    first, *others = publish(store, "job-1").versions
    damage_record(store, f"version-{first.task_id}-1")
    server.forget()
    report = store.rebuild()
    assert [problem.kind for problem in report.problems if not problem.repaired] == ["unreadable_record"]
    assert store.list_versions("sentiment")[0] == others


def damage_record(store: PromptStore, subject: str) -> None:
    if isinstance(store.blobs, RemoteBlobStore):
        (name,) = store.blobs.objects.names(f"records/{subject}")
        store.blobs.objects.put(f"records/{subject}/{name}", b"?")
    else:
        (store.blobs.root / "records" / f"{subject}.json").write_bytes(b"?")


def test_orphans_of_none_of_them_are_collected(store: PromptStore) -> None:
    made = publish(store, "job-1")
    assert store.collect_orphans(grace_s=0) == []
    assert set(store.blobs.digests()) == {version.digest for version in made.versions}
