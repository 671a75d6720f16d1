from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretraining import experiments
from pretraining.errors import RecipeError
from pretraining.experiments import Bench, Experiment, main, read_experiments
from pretraining.files import read_json, write_json
from pretraining.recipe import changed
from tests.unit.pretraining.conftest import World, raw_recipe, toml

SHIPPED = Path(experiments.__file__).parent


def bench(world: World) -> Bench:
    return Bench(world.data, world.corpus, world.work)


def variant(name: str, **change: Any) -> Experiment:
    return Experiment(name, "question", changed(raw_recipe(), change))


def test_change_when_laid_over_a_list_changes_each_of_it() -> None:
    made = changed({"a": [{"x": 1, "y": 2}, {"x": 3}], "b": 1}, {"a": {"x": 9}, "c": {"d": 2}})
    assert made == {"a": [{"x": 9, "y": 2}, {"x": 9}], "b": 1, "c": {"d": 2}}


@pytest.mark.parametrize(("file", "least"), [("experiments.toml", 8), ("experiments-longer.toml", 2)])
def test_shipped_experiments_are_recipes_and_each_differs_from_the_base_in_one_table(file: str, least: int) -> None:
    seconds, (base, *others) = read_experiments(SHIPPED / file, SHIPPED / "chorus.toml")
    assert seconds > 0
    assert len(others) >= least
    for other in others:
        assert len([key for key in base.raw if base.raw[key] != other.raw[key]]) == 1, other.name


@pytest.mark.parametrize(
    "text",
    ["seconds = 1", "seconds = 1\n[[variants]]\nname = 'a'", "no toml",
     "seconds = 1\n[[variants]]\nname='a'\nquestion='q'\nchange={shape={heads=7}}",
     "seconds = 1\n" + "[[variants]]\nname='a'\nquestion='q'\nchange={}\n" * 2],
)  # fmt: skip
def test_file_that_holds_no_experiments_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "experiments.toml"
    file.write_text(text)
    with pytest.raises(RecipeError):
        read_experiments(file, SHIPPED / "chorus.toml")


def test_variant_when_run_gets_steps_by_its_time_and_both_weights_are_evaluated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []

    def step_seconds(*what: Any) -> float:
        measured.append(real(*what))
        return 0.01

    real = Bench._step_seconds
    monkeypatch.setattr(Bench, "_step_seconds", step_seconds)
    found = bench(world).run(variant("base"), 0.2)
    assert found["steps"] == 20
    assert measured[0] > 0
    assert found["averaged"]["kept_back"] != found["last"]["kept_back"]
    assert found["tokens"] == 10 * 4 * 48 + 10 * 2 * 64


def test_variant_that_was_run_is_not_run_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench(world).run(variant("base"), 0.1)
    monkeypatch.setattr(experiments, "Trainer", None)
    assert bench(world).run(variant("base"), 0.1) == found


def test_step_that_was_timed_is_not_timed_again_when_its_variant_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, file = tmp_path / "recipe.toml", tmp_path / "experiments.toml"
    recipe.write_text(toml(raw_recipe()))
    file.write_text("seconds = 0.1\n[[variants]]\nname='small'\nquestion='base'\nchange={}\n")
    places = ["--data", str(world.data), "--corpus", str(world.corpus), "--work", str(world.work)]
    whole = [*places, "--recipe", str(recipe), "--experiments", str(file), "--threads", "1"]
    assert main([*whole, "--time"]) == 0
    (kept,) = (world.work / "speeds").iterdir()
    write_json(kept, {"name": "small", "step_seconds": 0.1 / 17})
    monkeypatch.delattr(Bench, "_step_seconds")
    assert main(whole) == 0
    (found,) = (world.work / "results").iterdir()
    assert read_json(found)["steps"] == 17


def test_variant_that_packs_otherwise_has_shards_of_its_own(world: World) -> None:
    for vocabulary in (400, 350):
        bench(world).run(variant(str(vocabulary), tokenizer={"vocabulary": vocabulary}), 0.1)
    assert len(list((world.work / "packed").iterdir())) == 2


def test_matrices_by_adamw_learn_as_well(world: World) -> None:
    found = bench(world).run(variant("adamw", train={"matrices": "adamw", "matrix_rate": 0.003}), 0.1)
    muon = bench(world).run(variant("muon"), 0.1)
    assert found["averaged"]["kept_back"]["wikipedia"]["nats_per_token"] < 6.5
    assert found["averaged"]["kept_back"] != muon["averaged"]["kept_back"]


def test_page_when_written_holds_a_table_a_question_with_the_base_on_top(world: World, tmp_path: Path) -> None:
    recipe, file, page = tmp_path / "recipe.toml", tmp_path / "experiments.toml", tmp_path / "page.md"
    recipe.write_text(toml(raw_recipe()))
    file.write_text(
        "seconds = 0.1\n[[variants]]\nname='small'\nquestion='base'\nchange={}\n"
        "[[variants]]\nname='slow'\nquestion='Rate'\nchange={train={matrix_rate=0.01}}\n"
    )
    places = ["--data", str(world.data), "--corpus", str(world.corpus), "--work", str(world.work)]
    whole = [*places, "--recipe", str(recipe), "--experiments", str(file), "--threads", "1"]
    assert main(whole) == 0
    assert main([*whole, "--page", str(page)]) == 0
    text = page.read_text()
    assert text.index("## Rate") < text.index("| small |") < text.index("| slow |")
