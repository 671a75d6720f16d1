"""The model card of an exported backbone: what it tells, from which records, and what it refuses to tell."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from app.backbone import BackboneConfig, load_backbone
from pretraining.card import CARD, PICTURE, write_card
from pretraining.card.head import front_matter, what_lines
from pretraining.card.records import read_run, tokens_by_source
from pretraining.errors import WorkError
from pretraining.experiments import read_experiments
from pretraining.export import export, tokens_until
from pretraining.packing import Texts, pack_stage
from pretraining.place import Place
from pretraining.recipe import Origin, Recipe, recipe_from
from pretraining.tokenizer import load_tokenizer
from pretraining.trainer import Trainer
from prompt_store.models import BackboneRef
from prompt_store.starters import write_starter
from prompt_store.testing import EXAMPLE_SPEC, example_evaluation, example_meta, example_tensors, memory_store
from tests.unit.pretraining.conftest import World, raw_recipe, raw_sibling, shorter, toml
from tests.unit.pretraining.test_command import run, untouched_process, written  # noqa: F401  a fixture

LICENCE = Origin("snli", "SNLI, made up", "CC BY-SA 4.0")


def place(world: World) -> Place:
    return Place(world.work, world.data)


def finished(world: World, recipe: Recipe) -> Path:
    """Packed, trained to its end, exported."""
    pack_stage(Texts(recipe, world.data, world.corpus), world.work)
    Trainer(recipe, place(world), load_tokenizer(world.work / "tokenizer")).run()
    return export(recipe, place(world), world.work / "export")


@pytest.fixture
def told(recipe: Recipe) -> Recipe:
    return replace(recipe, origins=(LICENCE,))


@pytest.fixture
def model(world: World, told: Recipe) -> Path:
    return finished(world, told)


def table_below(text: str, begin: str) -> list[list[str]]:
    """Cells of the rows of the table whose head begins so."""
    lines = text[text.index(f"| {begin} |") :].splitlines()
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def changed_json(file: Path, **change: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))


# -- what it tells


def test_card_when_a_run_is_finished_tells_texts_licences_compute_and_evaluations(
    world: World, told: Recipe, model: Path
) -> None:
    assert write_card(told, place(world), model, model) == model / CARD
    text = (model / CARD).read_text(encoding="utf-8")
    manifest = json.loads((world.work / "shards" / "manifest.json").read_text())
    texts = {row[0]: row for row in table_below(text, "texts")}
    assert set(texts) == set(manifest["overlap"]["seen"])
    assert texts["snli"][1:3] == ["SNLI, made up", "CC BY-SA 4.0"]
    assert texts["sst2"][1:3] == ["not recorded in the recipe"] * 2
    sources = {row[0]: row for row in table_below(text, "source")}
    assert set(sources) == {"wikipedia", "nli", "sentences", "reading"}
    assert sources["nli"][4] == "2"
    assert f"| tokens | {tokens_until(told, 12):,} |" in text
    (evaluation,) = map(json.loads, (world.work / "evaluations.jsonl").read_text().splitlines())
    most_common, (step, bits, accuracy) = table_below(text, "step | wikipedia, bits a byte | sst2, %")
    assert (step, bits) == ("12", f"{evaluation['kept_back']['wikipedia']['bits_per_byte']:.3f}")
    assert accuracy.startswith(f"{100 * evaluation['probes'][0]['accuracy']:.1f} (")
    labels = [json.loads(line)["label"] for line in (world.data / "sst2" / "dev.jsonl").read_text().splitlines()]
    assert most_common[2] == f"{100 * max(map(labels.count, labels)) / len(labels):.1f}"
    assert f"]({PICTURE})" in text
    assert (model / PICTURE).is_file()
    assert "all measured" in text
    assert "Prompts tuned on it" not in text


def test_card_when_the_recipe_has_a_caution_says_it_below_the_overlap_check(
    world: World, told: Recipe, model: Path
) -> None:
    warned = replace(told, card=replace(told.card, caution="Of imdb, 25 dev rows were read."))
    text = write_card(warned, place(world), model, model).read_text(encoding="utf-8")
    assert text.count("**Caution.** Of imdb, 25 dev rows were read.") == 1
    assert text.index("were dropped") < text.index("**Caution.**") < text.index("## Recipe")
    assert "**Caution.**" not in write_card(told, place(world), model, model).read_text(encoding="utf-8")


def test_card_when_made_again_has_the_same_bytes(world: World, told: Recipe, model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_card(told, place(world), model, tmp_path / name)
    for name in (CARD, PICTURE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert (tmp_path / "one" / name).stat().st_mode & 0o777 == 0o644


def test_card_when_training_went_on_behind_the_export_tells_the_exported_steps_alone(
    world: World, told: Recipe
) -> None:
    pack_stage(Texts(told, world.data, world.corpus), world.work)
    run_of = Trainer(told, place(world), load_tokenizer(world.work / "tokenizer"))
    run_of.run(until=4)
    model = export(told, place(world), world.work / "export")
    run_of.run()
    found = read_run(told, place(world), model)
    assert (found.step, [line.step for line in found.lines]) == (4, [2, 4])
    assert [one["step"] for one in found.evaluations] == [4]
    assert found.shares == {"wikipedia": 4 * 192, "nli": 0, "sentences": 0, "reading": 0}
    text = write_card(told, place(world), model, model).read_text(encoding="utf-8")
    assert "| steps | 4 of the recipe's 12 |" in text
    assert "windows of 48 at most" in text  # the phase with longer ones had not begun


def test_tokens_by_source_when_summed_are_all_that_were_read(recipe: Recipe) -> None:
    for step in (0, 3, 6, 9, 12):
        assert sum(tokens_by_source(recipe, step).values()) == pytest.approx(tokens_until(recipe, step))


@pytest.mark.parametrize(
    ("raw", "pipeline"),
    [
        (raw_recipe(), "text-generation"),
        (raw_sibling("masked"), "fill-mask"),
        (raw_sibling("spans"), "text2text-generation"),
    ],
)
def test_card_when_of_any_family_has_front_matter_and_an_example_that_runs(
    world: World, raw: dict[str, Any], pipeline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_from(raw)
    model = finished(world, recipe)
    found = read_run(recipe, place(world), model)
    begin, *front, end, _ = front_matter(found)
    assert begin == end == "---"
    head = yaml.safe_load("\n".join(front))
    assert (head["language"], head["license"], head["pipeline_tag"]) == ("en", "other", pipeline)
    code = "\n".join(what_lines(found)).split("```python\n")[1].split("```")[0]
    assert code.count(f'"{found.name}"') == 2
    with torch.no_grad():
        exec(code.replace(f'"{found.name}"', repr(str(model))), {})
    assert capsys.readouterr().out.endswith("\n")


# -- what it refuses


@pytest.mark.parametrize(
    ("gone", "stage"),
    [
        ("shards/manifest.json", "pack"),
        ("tokenizer/state.json", "tokenizer"),
        ("train.jsonl", "train"),
        ("evaluations.jsonl", "train"),
        ("export/provenance.json", "export"),
        ("export/model.safetensors", "export"),
    ],
)
def test_card_when_a_record_is_missing_names_the_stage_that_makes_it(
    world: World, told: Recipe, model: Path, gone: str, stage: str
) -> None:
    (world.work / gone).unlink()
    with pytest.raises(WorkError, match=f"run the stage {stage}"):
        write_card(told, place(world), model, model)
    assert not (model / CARD).exists()


def test_card_when_the_log_ends_before_the_model_begins_says_to_train(world: World, told: Recipe, model: Path) -> None:
    (world.work / "train.jsonl").write_text("")
    with pytest.raises(WorkError, match="run the stage train"):
        write_card(told, place(world), model, model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "other"}, "another recipe"),
        ({"tokens_trained": 1}, "another recipe"),
        ({"shards_key": "0"}, "other texts"),
    ],
)
def test_card_when_the_export_is_of_something_else_is_refused(
    world: World, told: Recipe, model: Path, change: dict[str, Any], said: str
) -> None:
    changed_json(model / "provenance.json", **change)
    with pytest.raises(WorkError, match=said):
        write_card(told, place(world), model, model)


def test_card_when_a_record_is_of_a_form_before_is_refused(world: World, told: Recipe, model: Path) -> None:
    provenance = model / "provenance.json"
    whole = provenance.read_text()
    provenance.write_text(json.dumps({key: value for key, value in json.loads(whole).items() if key != "objectives"}))
    with pytest.raises(WorkError, match="its objectives: run the stage export"):
        write_card(told, place(world), model, model)
    provenance.write_text(whole)
    (world.work / "evaluations.jsonl").write_text('{"steps": 12}\n')
    with pytest.raises(WorkError, match="lacks what a card needs"):
        write_card(told, place(world), model, model)
    (world.work / "evaluations.jsonl").write_text("no JSON\n")
    with pytest.raises(WorkError, match="damaged"):
        write_card(told, place(world), model, model)


# -- prompts tuned on it


def starters(folder: Path, fingerprint: str, hidden: int) -> Path:
    store = memory_store(folder / "store")
    ref = BackboneRef(name="small", fingerprint=fingerprint, hidden_size=hidden)
    meta = example_meta(backbone=ref)
    version = store.publish(
        task=meta.task, meta=meta, tensors=example_tensors(meta), publication="one", spec=EXAMPLE_SPEC
    ).version
    card = [
        example_evaluation(0.5).model_copy(update={"split": "validation"}),
        example_evaluation(0.875).model_copy(
            update={"split": "test", "n": 800, "interval": (0.85, 0.896), "baselines": {"majority": 0.5}}
        ),
    ]
    write_starter(version, EXAMPLE_SPEC, store.read_blob(version.digest), card=card, folder=folder / "starters")
    return folder / "starters"


def test_card_when_prompts_were_tuned_on_the_model_tables_their_test_rows(
    world: World, told: Recipe, model: Path, tmp_path: Path
) -> None:
    ours = load_backbone(BackboneConfig(str(model), dtype="float32"))
    prompts = starters(tmp_path, ours.fingerprint, told.shape.hidden)
    text = write_card(told, place(world), model, model, prompts=prompts).read_text(encoding="utf-8")
    (row,) = table_below(text, "task")
    assert row == ["sentiment", "–", "accuracy", "800", "87.5 (85.0–89.6)", "–", "50.0"]


def test_card_when_prompts_were_tuned_on_another_model_is_refused(
    world: World, told: Recipe, model: Path, tmp_path: Path
) -> None:
    prompts = starters(tmp_path, "0" * 64, told.shape.hidden)
    with pytest.raises(WorkError, match=r"sentiment .* another model"):
        write_card(told, place(world), model, model, prompts=prompts)
    with pytest.raises(WorkError, match="no prompts"):
        write_card(told, place(world), model, model, prompts=tmp_path)


# -- the command


def test_all_when_run_writes_the_card_beside_the_weights_and_card_writes_it_elsewhere(
    world: World, tmp_path: Path
) -> None:
    recipe = written(tmp_path)
    out = tmp_path / "model"
    assert run(world, "all", recipe, "--out", str(out)) == 0
    assert (out / CARD).is_file()
    shutil.copytree(out, world.work / "export")
    assert run(world, "card", recipe, "--out", str(tmp_path / "elsewhere")) == 0
    assert sorted(file.name for file in (tmp_path / "elsewhere").iterdir()) == [CARD, PICTURE]
    assert (tmp_path / "elsewhere" / CARD).read_bytes() == (out / CARD).read_bytes()


def test_card_when_nothing_is_exported_says_which_stage_to_run(
    packed: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(packed, "card", written(tmp_path)) == 1
    assert "run the stage export" in capsys.readouterr().err


# -- licences are words alone


def test_run_when_licences_are_written_into_its_recipe_goes_on_with_its_shards_and_checkpoint(
    packed: World, recipe: Recipe, told: Recipe
) -> None:
    Trainer(recipe, place(packed), load_tokenizer(packed.work / "tokenizer")).run(until=3)
    manifest = (packed.work / "shards" / "manifest.json").stat().st_mtime_ns
    pack_stage(Texts(told, packed.data, packed.corpus), packed.work)
    assert (packed.work / "shards" / "manifest.json").stat().st_mtime_ns == manifest
    assert Trainer(shorter(told), place(packed), load_tokenizer(packed.work / "tokenizer")).step == 3


def test_experiment_when_its_recipe_gets_licences_is_found_as_it_was_kept(tmp_path: Path) -> None:
    (tmp_path / "experiments.toml").write_text(
        "seconds = 1\n[[variants]]\nname = 'a'\nquestion = 'base'\nchange = {}\n"
    )
    found = []
    for extra in ({}, {"origins": {"snli": {"title": "t", "licence": "l"}}, "card": {"licence": "mit"}}):
        (tmp_path / "recipe.toml").write_text(toml({**raw_recipe(), **extra}), encoding="utf-8")
        found.append(read_experiments(tmp_path / "experiments.toml", tmp_path / "recipe.toml"))
    assert found[0] == found[1]
