"""What every metadata server promises of publishing: atomic, once, numbered without gaps, fenced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from prompt_store import (
    PROD,
    Conflict,
    Fenced,
    InvalidBlob,
    InvalidName,
    PromptStore,
    Publication,
    RevisionMismatch,
    TaskNotFound,
    VersionInUse,
    parse_ref,
)
from prompt_store.testing import EXAMPLE_SPEC, example_evaluation, example_meta, example_tensors


def publish(store: PromptStore, publication: str, *, seed: int = 0, **options) -> Publication:
    meta = example_meta()
    options = {"spec": EXAMPLE_SPEC} | options
    return store.publish(
        task="sentiment", meta=meta, tensors=example_tensors(meta, seed), publication=publication, **options
    )


def test_publish_when_first_creates_task_version_and_prod_in_one_epoch(store: PromptStore) -> None:
    made = publish(store, "job-1", card=[example_evaluation()])
    assert made.created
    assert (made.version.number, made.version.state, made.version.publication) == (1, "published", "job-1")
    assert made.version.card == (example_evaluation(),)
    assert made.alias is not None
    assert (made.alias.name, made.alias.version, made.alias.revision) == (PROD, 1, 1)
    assert store.get_version("sentiment", 1) == made.version
    assert store.resolve(parse_ref("sentiment")) == made.version
    assert [(event.kind, event.epoch) for event in store.events()] == [("task", 1), ("version", 1), ("alias", 1)]


def test_publish_returns_a_version_whose_tensors_load(store: PromptStore) -> None:
    made = publish(store, "job-1")
    tensors = store.load(made.version)
    np.testing.assert_array_equal(tensors["prompt"], example_tensors(example_meta())["prompt"])
    assert store.read_blob(made.version.digest)[8:9] == b"{"


def test_publish_of_a_hard_prompt_needs_no_tensors(store: PromptStore) -> None:
    meta = example_meta(template="{text}", num_virtual_tokens=0, method={"type": "hard"})
    made = store.publish(task="sentiment", meta=meta, tensors={}, publication="job-1", spec=EXAMPLE_SPEC)
    assert store.load(made.version) == {}


def test_publish_when_first_under_another_alias_sets_prod_too(store: PromptStore) -> None:
    made = publish(store, "job-1", alias="canary")
    assert made.alias == store.get_alias("sentiment", "canary")
    assert store.get_alias("sentiment", PROD).version == 1
    publish(store, "job-2", alias="canary")
    assert store.get_alias("sentiment", PROD).version == 1


def test_publish_without_alias_moves_none(store: PromptStore) -> None:
    made = publish(store, "job-1", alias=None, state="candidate")
    assert made.alias is None
    assert made.version.state == "candidate"
    assert store.list_aliases("sentiment") == []


def test_publish_again_counts_on_and_moves_the_alias(store: PromptStore) -> None:
    publish(store, "job-1")
    made = publish(store, "job-2", seed=1)
    assert made.version.number == 2
    assert made.alias is not None
    assert (made.alias.version, made.alias.revision) == (2, 2)
    assert store.get_alias("sentiment", PROD) == made.alias


def test_publish_of_equal_content_makes_a_version_of_its_own_over_one_blob(store: PromptStore) -> None:
    first, second = publish(store, "job-1").version, publish(store, "job-2").version
    assert (first.number, second.number) == (1, 2)
    assert first.digest == second.digest
    assert list(store.blobs.digests()) == [first.digest]


def test_publish_when_the_publication_was_made_returns_it_and_changes_nothing(store: PromptStore) -> None:
    first = publish(store, "job-1", card=[example_evaluation()])
    publish(store, "job-2")
    epoch = store.epoch()
    again = publish(store, "job-1", seed=5, alias_revision=77)
    assert not again.created
    assert again.version == first.version
    assert store.epoch() == epoch
    assert store.get_alias("sentiment", PROD).version == 2
    assert store.find_publication("job-1") == first.version
    assert store.find_publication("job-3") is None


def test_publish_when_the_publication_belongs_elsewhere_conflicts(store: PromptStore) -> None:
    publish(store, "job-1")
    meta = example_meta("topic")
    with pytest.raises(Conflict):
        store.publish(task="topic", meta=meta, tensors=example_tensors(meta), publication="job-1", spec=EXAMPLE_SPEC)
    store.delete_task("sentiment")
    with pytest.raises(Conflict):
        publish(store, "job-1")


def test_publish_when_the_task_is_missing_and_no_spec_is_given_writes_nothing(store: PromptStore) -> None:
    with pytest.raises(TaskNotFound):
        publish(store, "job-1", spec=None)
    assert (store.epoch(), store.find_publication("job-1")) == (0, None)


def test_publish_when_the_alias_has_moved_on_writes_nothing(store: PromptStore) -> None:
    publish(store, "job-1")
    for expected in (0, 2):
        with pytest.raises(RevisionMismatch) as caught:
            publish(store, "job-2", alias_revision=expected)
        assert caught.value.current == 1
    with pytest.raises(RevisionMismatch) as caught:
        publish(store, "job-2", alias="canary", alias_revision=1)
    assert caught.value.current is None
    assert publish(store, "job-2", alias_revision=1).version.number == 2
    assert publish(store, "job-3", alias="canary", alias_revision=0).version.number == 3


def test_publish_with_a_lower_fence_than_seen_is_refused(store: PromptStore) -> None:
    publish(store, "job-1", fence=2)
    with pytest.raises(Fenced):
        publish(store, "job-1", fence=1)
    assert not publish(store, "job-1", fence=2).created
    assert store.raise_fence("job-2", 7) == 7
    assert store.raise_fence("job-2", 5) == 7
    with pytest.raises(Fenced):
        publish(store, "job-2", fence=6)
    assert publish(store, "job-2", fence=7).version.number == 2


@pytest.mark.parametrize("state", ["retired", "quarantined"])
def test_publish_when_the_state_bars_an_alias_conflicts(store: PromptStore, state) -> None:
    with pytest.raises(Conflict):
        publish(store, "job-1", state=state)
    assert publish(store, "job-1", state=state, alias=None).version.state == state


@pytest.mark.parametrize("publication", ["", " ", "a b", "-x", "x" * 201, "é", "a\nb"])
def test_publish_when_the_publication_key_is_not_of_its_form_is_refused(store: PromptStore, publication: str) -> None:
    with pytest.raises(InvalidName):
        publish(store, publication)


def test_publish_of_unacceptable_content_writes_nothing(store: PromptStore) -> None:
    meta = example_meta()
    good = example_tensors(meta)["prompt"]
    for tensors in (
        {},
        {"prompt": good, "more": good},
        {"other": good},
        {"prompt": good.astype(np.float64)},
        {"prompt": good[:1]},
        {"prompt": good[0]},
        {"prompt": np.full_like(good, np.nan)},
        {"prompt": np.full_like(good, np.inf)},
        {"prompt": np.full_like(good, 1e30)},
    ):
        with pytest.raises(InvalidBlob):
            store.publish(task="sentiment", meta=meta, tensors=tensors, publication="job-1", spec=EXAMPLE_SPEC)
    with pytest.raises(InvalidBlob):
        store.publish(task="topic", meta=meta, tensors={"prompt": good}, publication="job-1", spec=EXAMPLE_SPEC)
    assert store.epoch() == 0
    assert list(store.blobs.digests()) == []


def test_publish_from_many_threads_gives_every_number_once(store: PromptStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda job: publish(store, f"job-{job}", seed=job), range(24)))
    assert sorted(publication.version.number for publication in made) == list(range(1, 25))
    assert all(publication.created for publication in made)
    assert store.get_alias("sentiment", PROD).revision == 24
    assert store.fsck().ok


def test_publish_of_one_publication_from_many_threads_makes_one_version(store: PromptStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda seed: publish(store, "job-1", seed=seed), range(16)))
    assert sum(publication.created for publication in made) == 1
    assert {publication.version.number for publication in made} == {1}
    assert len(store.list_versions("sentiment")[0]) == 1


def test_list_versions_pages_in_order_of_numbers(store: PromptStore) -> None:
    for job in range(5):
        publish(store, f"job-{job}")
    first, more = store.list_versions("sentiment", limit=2)
    assert [version.number for version in first] == [1, 2]
    assert more
    rest, more = store.list_versions("sentiment", after=2, limit=3)
    assert [version.number for version in rest] == [3, 4, 5]
    assert not more
    assert store.list_versions("sentiment", after=5) == ([], False)


def test_retire_version_when_an_alias_points_to_it_is_refused(store: PromptStore) -> None:
    publish(store, "job-1")
    with pytest.raises(VersionInUse):
        store.retire_version("sentiment", 1)
    publish(store, "job-2")
    assert store.retire_version("sentiment", 1).state == "retired"
    assert store.get_version("sentiment", 1).state == "retired"
    assert store.events()[-1].kind == "version_state"
    epoch = store.epoch()
    store.retire_version("sentiment", 1)
    assert store.epoch() == epoch


def test_append_evaluation_adds_to_the_card_once(store: PromptStore) -> None:
    publish(store, "job-1", card=[example_evaluation(0.8)])
    again = example_evaluation(0.9, seeds=(1, 2))
    card = store.append_evaluation("sentiment", 1, again).card
    assert [evaluation.score for evaluation in card] == [0.8, 0.9]
    assert card[1].details == {"seeds": [1, 2]}
    assert store.append_evaluation("sentiment", 1, again).card == card
    assert store.get_version("sentiment", 1).card == card
