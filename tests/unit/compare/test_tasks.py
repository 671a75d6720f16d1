"""Promises of the rows: files of every form, splits without an input in common, faults that are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.compare.tasks import Limits, Manifest, TaskFiles, read_task
from app.errors import InvalidDataset, InvalidRequest
from tests.training_data import mood_rows


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_one_file_gives_train_dev_and_test_rows_apart(tmp_path: Path) -> None:
    task = read_task(TaskFiles(name="mood", data=written(tmp_path / "r.jsonl", mood_rows(80))), "causal", Limits())
    parts = [{e.fields["text"] for e in part} for part in (task.train, task.dev, task.test)]
    assert [len(part) for part in parts] == [58, 6, 16]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert task.words == {"bad": (" bad",), "good": (" good",)}
    assert task.template.source == "<prompt:20>{text}\nAnswer:"


def test_training_rows_that_are_test_rows_are_left_out(tmp_path: Path) -> None:
    rows = mood_rows(40)
    files = TaskFiles(
        name="mood",
        data=written(tmp_path / "train.jsonl", rows),
        dev=written(tmp_path / "dev.jsonl", rows[:4]),
        test=written(tmp_path / "test.jsonl", rows[4:12]),
    )
    task = read_task(files, "causal", Limits())
    assert (len(task.train), task.dropped, task.notes) == (28, 12, ())


def test_dev_rows_that_are_test_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = mood_rows(60)
    files = TaskFiles(
        name="mood",
        data=written(tmp_path / "train.jsonl", rows[:30]),
        dev=written(tmp_path / "dev.jsonl", rows[30:50]),
        test=written(tmp_path / "test.jsonl", rows[44:60]),
    )
    task = read_task(files, "causal", Limits(dev=14, test=4))
    assert {e.fields["text"] for e in task.dev} == {row["text"] for row in rows[30:44]}
    assert (len(task.test), task.dropped) == (4, 6)


def test_dev_rows_that_are_all_test_rows_are_too_few(tmp_path: Path) -> None:
    rows = mood_rows(40)
    held = written(tmp_path / "held.jsonl", rows[:8])
    files = TaskFiles(name="mood", data=written(tmp_path / "train.jsonl", rows[8:]), dev=held, test=held)
    with pytest.raises(InvalidDataset, match="share no input"):
        read_task(files, "causal", Limits())


def test_limits_keep_labels_in_proportion(tmp_path: Path) -> None:
    data = written(tmp_path / "r.jsonl", mood_rows(200))
    task = read_task(TaskFiles(name="mood", data=data), "causal", Limits(train=20, dev=4, test=10))
    assert len(task.train) == 20
    assert [e.label for e in task.test].count("good") == 5
    assert len(task.references) == len(task.test) == 10


def test_rows_with_references_are_learned_by_the_first_and_judged_by_all(tmp_path: Path) -> None:
    train = [{"input": f"name {n}", "output": f"it is number {n} of the list"} for n in range(8)]
    dev, test = (
        [{"input": f"{kind} {n}", "references": [f"one {n} is it", f"two {n}"]} for n in range(4)]
        for kind in ("another", "other")
    )
    files = TaskFiles(
        name="say",
        data=written(tmp_path / "train.jsonl", train),
        dev=written(tmp_path / "dev.jsonl", dev),
        test=written(tmp_path / "test.jsonl", test),
    )
    task = read_task(files, "causal", Limits())
    assert task.labels is None
    assert task.metric == "rouge_l"
    assert task.references[1] == ("one 1 is it", "two 1")
    assert task.test[1].output == "one 1 is it"


def test_template_without_a_slot_gets_one_in_front(tmp_path: Path) -> None:
    files = TaskFiles(name="m", data=written(tmp_path / "r.jsonl", mood_rows(40)), template="{text} It was")
    assert read_task(files, "causal", Limits()).template.source == "<prompt:20>{text} It was"


def test_template_with_other_fields_is_refused(tmp_path: Path) -> None:
    files = TaskFiles(name="m", data=written(tmp_path / "r.jsonl", mood_rows(40)), template="{review} It was")
    with pytest.raises(InvalidRequest, match="review, the rows have text"):
        read_task(files, "causal", Limits())


def test_references_that_are_no_list_name_the_row(tmp_path: Path) -> None:
    rows = [{"input": "a", "references": ["b"]}, {"input": "c", "references": "d"}]
    with pytest.raises(InvalidDataset) as error:
        read_task(TaskFiles(name="m", data=written(tmp_path / "r.jsonl", rows)), "causal", Limits())
    assert error.value.row == 2


def test_manifest_names_files_beside_itself(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    file.write_text(json.dumps({"tasks": [{"name": "a", "data": "a.jsonl"}, {"name": "b", "data": "/x/b.jsonl"}]}))
    assert [one.data for one in Manifest.read(file)] == [tmp_path / "a.jsonl", Path("/x/b.jsonl")]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([{"name": "a", "data": "x"}, {"name": "a", "data": "y"}], "same name"),
        ([{"name": "a", "rows": "x"}], "tasks.0"),
        ([], "tasks"),
    ],
)
def test_manifest_with_a_fault_says_where(tmp_path: Path, tasks: list[Any], said: str) -> None:
    file = tmp_path / "all.json"
    file.write_text(json.dumps({"tasks": tasks}))
    with pytest.raises(InvalidRequest, match=said):
        Manifest.read(file)
