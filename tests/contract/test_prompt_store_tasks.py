"""What every metadata server promises of tasks."""

from __future__ import annotations

import pytest

from prompt_store import AliasNotFound, Conflict, InvalidName, PromptStore, TaskNotFound, TaskSpec, VersionNotFound
from prompt_store.testing import EXAMPLE_SPEC, example_meta, example_tensors


def publish(store: PromptStore, publication: str, task: str = "sentiment", **options):
    meta = example_meta(task)
    return store.publish(
        task=task, meta=meta, tensors=example_tensors(meta), publication=publication, spec=EXAMPLE_SPEC, **options
    )


def test_put_task_when_new_creates_it(store: PromptStore) -> None:
    task = store.put_task("sentiment", EXAMPLE_SPEC)
    assert task.spec == EXAMPLE_SPEC
    assert task.created_at == task.updated_at
    assert store.get_task("sentiment") == task


def test_put_task_when_it_exists_changes_the_spec_and_keeps_the_id(store: PromptStore) -> None:
    before = store.put_task("sentiment", EXAMPLE_SPEC)
    spec = EXAMPLE_SPEC.model_copy(update={"description": "films"})
    after = store.put_task("sentiment", spec)
    assert (after.id, after.created_at, after.spec) == (before.id, before.created_at, spec)
    assert after.updated_at >= before.updated_at


def test_put_task_when_nothing_changes_makes_no_event(store: PromptStore) -> None:
    task = store.put_task("sentiment", EXAMPLE_SPEC)
    epoch = store.epoch()
    assert store.put_task("sentiment", EXAMPLE_SPEC) == task
    assert store.epoch() == epoch
    assert len(store.events()) == 1


def test_ensure_task_says_whether_this_call_created_it(store: PromptStore) -> None:
    task, created = store.ensure_task("sentiment", EXAMPLE_SPEC)
    assert created
    assert store.ensure_task("sentiment", EXAMPLE_SPEC) == (task, False)
    assert not store.ensure_task("sentiment", EXAMPLE_SPEC.model_copy(update={"description": "films"}))[1]
    store.delete_task("sentiment")
    assert store.ensure_task("sentiment", EXAMPLE_SPEC)[1]
    publish(store, "job-1", "made-by-a-version")
    assert not store.ensure_task("made-by-a-version", EXAMPLE_SPEC)[1]


def test_put_task_when_labels_change_under_versions_conflicts(store: PromptStore) -> None:
    publish(store, "job-1")
    with pytest.raises(Conflict) as caught:
        store.put_task("sentiment", EXAMPLE_SPEC.model_copy(update={"labels": ("negative",)}))
    assert caught.value.param == "labels"
    assert store.get_task("sentiment").spec == EXAMPLE_SPEC


def test_put_task_when_there_are_no_versions_may_change_labels(store: PromptStore) -> None:
    store.put_task("sentiment", EXAMPLE_SPEC)
    spec = TaskSpec(fields=("text",), labels=None, metric="exact_match")
    assert store.put_task("sentiment", spec).spec == spec


def test_list_tasks_pages_in_order_of_names(store: PromptStore) -> None:
    for name in ("topic", "nli", "a", "sentiment", "a-b"):
        store.put_task(name, EXAMPLE_SPEC)
    first, more = store.list_tasks(limit=2)
    assert [task.name for task in first] == ["a", "a-b"]
    assert more
    rest, more = store.list_tasks(after="a-b", limit=3)
    assert [task.name for task in rest] == ["nli", "sentiment", "topic"]
    assert not more


def test_delete_task_takes_versions_aliases_and_name_with_it(store: PromptStore) -> None:
    publish(store, "job-1")
    publish(store, "job-2", task="topic")
    store.delete_task("sentiment")
    for read in (store.get_task, store.list_versions, store.list_aliases, store.delete_task):
        with pytest.raises(TaskNotFound):
            read("sentiment")
    assert [task.name for task in store.list_tasks()[0]] == ["topic"]
    assert [version.task for version in store.snapshot().versions] == ["topic"]
    assert store.events()[-1].kind == "task_deleted"
    assert store.find_publication("job-1") is None


def test_recreated_task_has_a_new_id_and_goes_on_counting(store: PromptStore) -> None:
    old = publish(store, "job-1").version
    store.delete_task("sentiment")
    task = store.put_task("sentiment", EXAMPLE_SPEC)
    assert task.id != old.task_id
    assert store.list_versions("sentiment") == ([], False)
    assert store.list_aliases("sentiment") == []
    new = publish(store, "job-2")
    assert (new.version.number, new.version.task_id) == (2, task.id)
    assert store.get_alias("sentiment", "prod").version == 2
    assert store.list_versions("sentiment") == ([new.version], False)
    with pytest.raises(VersionNotFound):
        store.get_version("sentiment", 1)


@pytest.mark.parametrize("name", ["", "-a", "A", "a b", "../x", "a..b", "a/b", "a\n", "é", "x" * 64, "a:b", "a@1"])
def test_names_that_are_not_of_their_form_are_refused_everywhere(store: PromptStore, name: str) -> None:
    for call in (
        lambda: store.put_task(name, EXAMPLE_SPEC),
        lambda: store.get_task(name),
        lambda: store.list_tasks(after=name),
        lambda: store.get_version(name, 1),
        lambda: store.get_alias("sentiment", name),
        lambda: store.move_alias("sentiment", name, 1, expected=None),
    ):
        with pytest.raises(InvalidName):
            call()
    assert store.epoch() == 0


def test_reading_what_does_not_exist_says_which_part(store: PromptStore) -> None:
    with pytest.raises(TaskNotFound):
        store.get_version("sentiment", 1)
    publish(store, "job-1")
    for number in (0, -1, 2, 10**12):
        with pytest.raises(VersionNotFound):
            store.get_version("sentiment", number)
    with pytest.raises(AliasNotFound):
        store.get_alias("sentiment", "canary")
