from __future__ import annotations

import pytest
import torch

from benchmarks.engine.workload import (
    Workload,
    every_task,
    fingerprint,
    label_ids,
    make_asks,
    make_tasks,
    row_embeddings,
    row_ids,
)

VOCABULARY, HIDDEN = 512, 8


def requests(work: Workload, turn: int, count: int) -> list[tuple[int, tuple[int, ...]]]:
    tasks = make_tasks(work, hidden=HIDDEN, vocabulary=VOCABULARY)
    return [(ask.task, ask.ids) for ask in make_asks(work, tasks, vocabulary=VOCABULARY, turn=turn, count=count)]


def test_work_when_made_twice_is_the_same() -> None:
    work = Workload(prompt=(5, 30), literals=(0, 6))
    twice = [make_tasks(work, hidden=HIDDEN, vocabulary=VOCABULARY) for _ in range(2)]
    asks = [make_asks(work, tasks, vocabulary=VOCABULARY, turn=3, count=20) for tasks in twice]
    assert fingerprint(twice[0], asks[0]) == fingerprint(twice[1], asks[1])
    assert fingerprint(twice[0], asks[0]) != fingerprint(twice[0], asks[0][:-1])


def test_shorter_round_when_made_begins_the_longer_one() -> None:
    assert requests(Workload(), 2, 5) == requests(Workload(), 2, 50)[:5]


def test_texts_when_rounds_follow_never_repeat() -> None:
    texts = [ids for turn in range(4) for _, ids in requests(Workload(), turn, 50)]
    assert len(set(texts)) == len(texts)


def test_prompt_lengths_when_drawn_span_the_range() -> None:
    tasks = make_tasks(Workload(prompt=(5, 100), tasks=8), hidden=HIDDEN, vocabulary=VOCABULARY)
    sizes = sorted(task.size for task in tasks)
    assert (sizes[0], sizes[-1]) == (5, 100)
    assert len(set(sizes)) == 8
    assert len({task.digest for task in tasks}) == 8


def test_texts_when_templates_have_words_keep_their_bounds() -> None:
    work = Workload(prompt=(4, 4), text=(3, 9), literals=(0, 5))
    tasks = make_tasks(work, hidden=HIDDEN, vocabulary=VOCABULARY)
    for task, ids in requests(work, 0, 60):
        words = len(tasks[task].before) + len(tasks[task].behind)
        assert 3 <= len(ids) - words <= 9
        assert ids[: len(tasks[task].before)] == tasks[task].before
    assert any(task.before or task.behind for task in tasks)


def test_label_words_when_texts_are_drawn_stand_apart_from_them() -> None:
    work = Workload(kind="labels", labels=4)
    used = {token for _, ids in requests(work, 0, 100) for token in ids}
    assert not used.intersection(label_ids(work, VOCABULARY))


@pytest.mark.parametrize("suffix", [False, True])
def test_row_when_given_as_embeddings_or_ids_is_the_same(suffix: bool) -> None:
    work = Workload(prompt=(4, 4), suffix=suffix)
    tasks = make_tasks(work, hidden=HIDDEN, vocabulary=VOCABULARY)
    [ask] = make_asks(work, tasks, vocabulary=VOCABULARY, turn=0, count=1)
    words, task = torch.randn(VOCABULARY, HIDDEN), tasks[ask.task]
    joined = row_embeddings(work, task, ask, words)
    for vector, index in zip(joined, row_ids(work, task, ask), strict=True):
        assert torch.equal(vector, words[index] if index >= 0 else task.vectors[-1 - index])
    assert torch.equal(joined[-4:] if suffix else joined[:4], task.vectors)


def test_tasks_when_members_answer_together_are_distinct() -> None:
    work = Workload(tasks=8, members=5)
    tasks = make_tasks(work, hidden=HIDDEN, vocabulary=VOCABULARY)
    for ask in make_asks(work, tasks, vocabulary=VOCABULARY, turn=0, count=20):
        assert len(set(ask.tasks)) == 5


def test_warm_up_when_made_covers_every_task_with_texts_of_its_own() -> None:
    work = Workload(tasks=5, literals=(0, 4))
    tasks = make_tasks(work, hidden=HIDDEN, vocabulary=VOCABULARY)
    warm = every_task(work, tasks, vocabulary=VOCABULARY, turn=0, at_least=12)
    assert [ask.task for ask in warm] == [i % 5 for i in range(15)]
    assert not {ask.ids for ask in warm}.intersection(ids for _, ids in requests(work, 0, 100))


def test_workload_when_sent_as_json_comes_back_equal() -> None:
    work = Workload(kind="labels", prompt=(5, 100), literals=(1, 3), seed=9)
    assert Workload.from_json(work.as_json()) == work
