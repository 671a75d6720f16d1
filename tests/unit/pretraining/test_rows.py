from __future__ import annotations

import json
import random

import pytest

from pretraining.errors import RefusedRows, WorkError
from pretraining.exercises import exercises
from pretraining.packing import Texts
from pretraining.recipe import Recipe
from pretraining.rows import Purpose, RowReader
from tests.unit.pretraining.conftest import World, write_rows


@pytest.mark.parametrize("split", ["dev", "test", "../snli/dev"])
def test_rows_when_training_asks_for_another_split_than_train_are_refused(world: World, split: str) -> None:
    with pytest.raises(RefusedRows, match="may not be read to train"):
        RowReader(world.data, ()).read("snli", split, Purpose.TRAIN)


def test_rows_when_the_set_is_held_out_are_refused_to_training(world: World) -> None:
    reader = RowReader(world.data, ["trec"])
    with pytest.raises(RefusedRows, match="held out"):
        reader.read("trec", "train", Purpose.TRAIN)


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_when_evaluation_asks_for_more_than_dev_are_refused(world: World, split: str) -> None:
    with pytest.raises(RefusedRows, match="to evaluate"):
        RowReader(world.data, ()).read("snli", split, Purpose.EVALUATE)


def test_rows_when_there_is_no_file_say_which(world: World) -> None:
    with pytest.raises(WorkError, match=r"mnli/train\.jsonl"):
        RowReader(world.data, ()).read("mnli", "train", Purpose.TRAIN)


def test_rows_when_a_field_is_longer_than_any_model_reads_are_left_out(world: World) -> None:
    write_rows(world.data / "sst2" / "train.jsonl", [{"text": "x" * 6000, "label": "positive"}, {"text": "fine"}])
    assert RowReader(world.data, ()).read("sst2", "train", Purpose.TRAIN) == [{"text": "fine"}]


def test_rows_that_are_protected_have_any_length_and_all_texts_of_a_field(world: World) -> None:
    rows = [{"text": "x" * 6000, "label": "positive"}, {"input": "a", "references": ["one text", "another"], "n": 3}]
    (world.data / "sst2" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = [row for origin, row in RowReader(world.data, ()).protected() if origin == "sst2/test"]
    assert found == [rows[0], {"input": "a", "references.0": "one text", "references.1": "another"}]


def test_texts_of_a_recipe_when_made_hold_no_dev_or_test_row_and_none_of_a_set_held_out(
    world: World, recipe: Recipe
) -> None:
    for file in world.data.glob("*/*.jsonl"):
        if file.stem != "train" or file.parent.name in recipe.held_out:
            file.write_text(file.read_text(encoding="utf-8").replace(': "', ': "forbidden '), encoding="utf-8")
    texts = Texts(recipe, world.data, world.corpus)
    shown = [piece.text for source in recipe.sources for document in texts.documents(source) for piece in document]
    assert len(shown) > 400
    assert not [text for text in shown if "forbidden" in text]


def test_exercises_when_there_are_two_passes_show_each_row_once_in_each(world: World) -> None:
    rows = RowReader(world.data, ()).read("sst2", "train", Purpose.TRAIN)
    made = list(exercises("sst2", rows, 2, random.Random(0)))
    assert [turn for turn, _ in made] == [0] * len(rows) + [1] * len(rows)
    first, second = ({doc for turn, doc in made if turn == wanted} for wanted in (0, 1))
    assert len(first & second) < len(rows) / 2
