"""Recipes, what is tried of them, and the request that trains one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.backbone import parse_template
from app.supervisor.banner import EXAMPLES
from app.training.methods import METHODS
from app.training.requests import TrainRequest
from app.training.sweep import variants
from benchmarks.methods import parts
from benchmarks.starters import RECIPES, Recipe
from benchmarks.starters.__main__ import wanted
from benchmarks.starters.recipes import Tries
from benchmarks.starters.rows import Split
from benchmarks.starters.training import BUDGETS, Trainer, body_of, tries_of

MOOD = Recipe(
    "mood", ("moods",), "moods", "<prompt:5>{text}\nMood:", {"good": " good", "bad": " bad"}, 100, "A mood?", "Ours",
    tries=Tries(rates=(1.0, 0.5), seeds=(3, 4), inits=("vocab", "labels"), vectors=(5, 9)),
)  # fmt: skip


def test_recipes_have_names_of_their_own_and_a_slot_of_the_size_they_try_first() -> None:
    assert len({recipe.task for recipe in RECIPES}) == len(RECIPES)
    for recipe in RECIPES:
        template = parse_template(recipe.template)
        assert template.num_virtual_tokens == recipe.tries.vectors[0]
        assert parse_template(recipe.with_vectors(7)).num_virtual_tokens == 7
        assert recipe.licence
        assert recipe.tries.rates[0] == 1


def test_recipes_cover_many_labels_and_free_text() -> None:
    assert any(recipe.words and 12 <= len(recipe.words) <= 20 for recipe in RECIPES)
    texts = [recipe for recipe in RECIPES if recipe.words is None]
    assert texts
    assert all(recipe.spec().labels is None and recipe.spec().metric == "rouge_l" for recipe in texts)


def test_every_recipe_has_an_example_that_chorus_up_shows() -> None:
    for recipe in RECIPES:
        assert set(EXAMPLES[recipe.task]) == set(recipe.spec().fields)
    assert set(EXAMPLES) == {recipe.task for recipe in RECIPES}


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_recipes_request_is_one_that_the_service_takes(budget: str) -> None:
    for recipe in RECIPES:
        body = body_of(recipe, tries_of(recipe, budget), rows=3000, own_rate=0.02)
        request = TrainRequest.model_validate(body)
        tried = variants(request) if request.sweep else []
        assert max(1, len(tried)) == tries_of(recipe, budget).size
        assert request.method.type in METHODS
        assert float(request.hyperparameters.n_epochs) * 3000 == pytest.approx(recipe.steps * 32)
        assert request.metadata["licence"] == recipe.licence


def test_tries_of_a_budget_are_one_the_rates_or_all() -> None:
    assert [tries_of(MOOD, budget).size for budget in BUDGETS] == [1, 2, 16]


def test_body_of_one_try_has_no_sweep_and_leaves_the_rate_to_the_method() -> None:
    body = body_of(MOOD, tries_of(MOOD, "once"), rows=100, own_rate=0.0)
    assert "sweep" not in body
    assert body["hyperparameters"] == {"n_epochs": 32.0, "batch_size": 32, "learning_rate": "auto", "seed": 3}
    assert (body["template"], body["method"]) == (MOOD.template, {"type": "prompt_tuning", "init": "vocab"})
    assert body["verbalizer"] == {"good": [" good"], "bad": [" bad"]}


def test_body_of_all_tries_sweeps_and_says_nothing_twice() -> None:
    body = body_of(MOOD, MOOD.tries, rows=100, own_rate=0.0264862)
    assert body["sweep"] == {
        "learning_rate": ["auto", 0.01324],
        "seed": [3, 4],
        "init": ["vocab", "labels"],
        "template": ["<prompt:5>{text}\nMood:", "<prompt:9>{text}\nMood:"],
    }
    assert set(body["hyperparameters"]) == {"n_epochs", "batch_size"}
    assert "template" not in body
    assert body["method"] == {"type": "prompt_tuning"}


def test_body_of_free_text_has_no_words() -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.words is None)
    assert "verbalizer" not in body_of(recipe, tries_of(recipe, "once"), rows=10, own_rate=0.0)


class Service:
    """As much of the API as training asks for. `status` is what becomes of every job."""

    def __init__(self, status: str = "succeeded") -> None:
        self.status = status
        self.uploads: dict[str, int] = {}
        self.jobs: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            self.uploads[request.url.path.rsplit("/", 1)[1]] = len(request.content.splitlines())
            return httpx.Response(200, json={})
        if request.method == "POST":
            self.jobs.append(json.loads(request.content))
            return httpx.Response(202, json={"id": str(len(self.jobs))})
        found = re.fullmatch(r"/v1/train/(\d+)", request.url.path)
        assert found
        job = {"hyperparameters": {"learning_rate": 0.02}, "result": {"version": int(found[1])}}
        return httpx.Response(200, json=job | {"status": self.status, "error": {"code": "diverged"}, "progress": None})


def trainer(service: Service, budget: str) -> Trainer:
    return Trainer(httpx.Client(base_url="http://h", transport=httpx.MockTransport(service)), budget)


ROWS = Split(train=[{"text": "a", "label": "good"}] * 40, dev=[{"text": "b", "label": "bad"}] * 8, test=[])


def test_trainer_asks_for_a_methods_rate_once_and_sweeps_around_it() -> None:
    service = Service()
    training = trainer(service, "rates")
    assert training.train(MOOD, ROWS)["result"]["version"] == 2
    training.train(MOOD, ROWS)
    assert service.uploads == {"mood-train": 40, "mood-dev": 8}
    probe, first, second = service.jobs
    assert (probe["task"], probe["publish"]) == ("mood-rate", {"when": "never"})
    assert first["sweep"] == second["sweep"] == {"learning_rate": ["auto", 0.01]}
    TrainRequest.model_validate(probe)


def test_trainer_of_one_try_asks_for_no_rate() -> None:
    service = Service()
    trainer(service, "once").train(MOOD, ROWS)
    assert [job["task"] for job in service.jobs] == ["mood"]


def test_trainer_when_a_job_fails_ends_with_its_error() -> None:
    with pytest.raises(SystemExit, match=r"mood: the job ended as failed: .*diverged"):
        trainer(Service("failed"), "once").train(MOOD, ROWS)


def test_wanted_without_a_corpus_leaves_out_what_needs_one_unless_it_is_named(tmp_path: Path) -> None:
    made = {recipe.task for recipe in RECIPES if recipe.from_corpus}
    assert made
    assert {recipe.task for recipe in wanted(None, None, None)} == {recipe.task for recipe in RECIPES} - made
    assert [recipe.task for recipe in wanted(None, tmp_path, None)] == [recipe.task for recipe in RECIPES]
    with pytest.raises(SystemExit, match="--corpus"):
        wanted(sorted(made), None, None)
    assert [recipe.steps for recipe in wanted(["nli"], None, 3)] == [3]


def test_methods_compare_with_the_words_of_the_starters(tmp_path: Path) -> None:
    labels, *_ = parts(tmp_path, tmp_path / "w", "bundled")
    by_test = {recipe.test: recipe for recipe in RECIPES}
    for files in labels.wanted.files:
        assert files.verbalizer == {label: [word] for label, word in (by_test[files.name].words or {}).items()}
