from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pretraining.documents import ANSWER, TASK, TEXT
from pretraining.errors import RecipeError
from pretraining.mixture import Mixture, loss_weights, phase_at
from pretraining.optimizer import rate_at
from pretraining.packing import read_manifest
from pretraining.recipe import Recipe, TrainRecipe, recipe_from
from pretraining.shards import PackedReader
from pretraining.tokenizer import BOS, EOS
from tests.unit.pretraining.conftest import World, raw_recipe


@pytest.fixture
def mixture(packed: World) -> Mixture:
    return opened(packed)


def opened(world: World) -> Mixture:
    manifest = read_manifest(world.work)
    names = ("wikipedia", "nli", "sentences", "reading")
    return Mixture({name: PackedReader(world.work / "shards" / name, manifest[name]) for name in names})


def test_weights_when_kinds_are_mixed_are_those_of_the_recipe() -> None:
    kinds = np.array([[TEXT, TASK, ANSWER, TASK]], np.uint8)
    assert loss_weights(kinds, answer=10.0, task=0.5).tolist() == [[1.0, 0.5, 10.0, 0.5]]


def test_batch_when_drawn_weighs_answers_and_ignores_the_begin_of_documents(mixture: Mixture, recipe: Recipe) -> None:
    phase = replace(recipe.phases[1], mixture={"sentences": 1.0})
    batch = mixture.batch(phase)
    targets = batch.ids[:, 1:]
    assert batch.ids.shape == (2, 65)
    assert (batch.weights[batch.answers] == 5.0).all()
    assert batch.answers.sum() >= 2
    assert (batch.weights[targets == BOS] == 0).all()
    assert set(np.unique(batch.weights).tolist()) <= {0.0, 0.5, 5.0}


def test_windows_of_exercises_when_read_on_show_each_document_whole_and_once(mixture: Mixture, recipe: Recipe) -> None:
    reader = mixture.readers["nli"]
    documents = [ids.tolist() for ids, _ in reader.documents() if len(ids) <= 60]
    phase = replace(recipe.phases[1], rows=1, mixture={"nli": 1.0})
    shown: Counter[tuple[int, ...]] = Counter()
    passed = 0
    while passed < len(reader):
        before = mixture.state()["at"]["nli"]
        batch = mixture.batch(phase)
        passed += (mixture.state()["at"]["nli"] - before) % len(reader) or len(reader)
        counted = [batch.ids[0, 0], *np.where(batch.weights[0] > 0, batch.ids[0, 1:], BOS)]
        runs = np.split(np.array(counted), np.flatnonzero(np.array(counted) == BOS))
        shown.update(tuple(run[1:].tolist()) for run in runs if len(run) > 1 and run[-1] == EOS)
    missed = [one for one in documents if not shown[tuple(one[1:])]]
    assert not missed


def test_sources_when_many_rows_are_drawn_keep_to_their_shares(mixture: Mixture, recipe: Recipe) -> None:
    phase = recipe.phases[1]
    counts = Counter(name for _ in range(40) for name in mixture.batch(phase).sources)
    assert counts == {"wikipedia": 40, "nli": 20, "sentences": 10, "reading": 10}


def test_mixture_when_restored_goes_on_with_the_same_batches(packed: World, recipe: Recipe) -> None:
    first, second = opened(packed), opened(packed)
    for _ in range(5):
        first.batch(recipe.phases[1])
    second.restore(first.state())
    for _ in range(5):
        for one, other in zip(first.batch(recipe.phases[1]), second.batch(recipe.phases[1]), strict=True):
            assert np.array_equal(one, other)


def test_phase_when_progress_reaches_its_end_is_the_next(recipe: Recipe) -> None:
    assert phase_at(recipe.phases, 0.0) is recipe.phases[0]
    assert phase_at(recipe.phases, 0.499) is recipe.phases[0]
    assert phase_at(recipe.phases, 0.5) is recipe.phases[1]
    assert phase_at(recipe.phases, 0.999) is recipe.phases[1]


def test_rate_when_training_goes_on_rises_stays_and_falls() -> None:
    train = TrainRecipe(steps=100, warm_up=10, decay=0.4, final=0.02)
    rates = [rate_at(step, train, train.steps) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:60] == [1.0] * 50
    assert rates[80] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.025)
    assert rates[60:] == sorted(rates[60:], reverse=True)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("held_out",), ["snli"], "uses a set that is held out"),
        (("phases", 1, "mixture", "nli"), 0.5, "sum to"),
        (("phases", 1, "mixture"), {"nowhere": 1.0}, "not there"),
        (("phases", 0, "until"), 1.0, "must rise"),
        (("phases", 1, "length"), 65, "fit the context"),
        (("tokenizer", "vocabulary"), 70_000, "uint16"),
        (("shape", "heads"), 3, "heads"),
        (("train", "stepz"), 3, "there is no stepz"),
        (("train", "precision"), "int3", "precision"),
        (("sources", "nli", "file"), "x", "one of file"),
    ],
)
def test_recipe_when_it_cannot_be_followed_says_why(path: tuple[str | int, ...], value: object, message: str) -> None:
    raw = raw_recipe()
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(RecipeError, match=message):
        recipe_from(raw)
