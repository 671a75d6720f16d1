"""The backbone's siblings of other families: trained, resumed, exported, loaded in Chorus."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.backbone import Backbone, BackboneConfig, compile_verbalizer, default_bos, load_backbone, parse_template
from app.training.data import Example
from app.training.examples import Encoder
from app.training.objective import label_scores
from pretraining.checkpoint import checkpoints, read_checkpoint
from pretraining.errors import PretrainingError, RecipeError, WorkError
from pretraining.export import export, trained_model
from pretraining.objectives import kind_of_model, objectives_of
from pretraining.optimizer import rate_at
from pretraining.packing import Texts, pack_stage
from pretraining.place import Place
from pretraining.recipe import Recipe, read_recipe, recipe_from
from pretraining.tokenizer import BOS, EOS, load_tokenizer
from pretraining.trainer import Meter, Trainer
from tests.unit.pretraining import conftest
from tests.unit.pretraining.conftest import World, raw_sibling, toml
from tests.unit.pretraining.test_command import run, untouched_process, written  # noqa: F401  a fixture

FOLDER = Path(__file__).parents[3] / "pretraining"
T5, BERT = ("spans", "prefix"), ("masked",)
WORDS = {"negative": [" negative"], "positive": [" positive"]}
SENTENCES = ["the dog sleeps in the old house", "a very old horse waits at the river o'clock"]


def place(world: World) -> Place:
    return Place(world.work, world.data)


def trainer(world: World, recipe: Recipe) -> Trainer:
    return Trainer(recipe, place(world), load_tokenizer(world.work / "tokenizer"))


def steps(of: Trainer, count: int) -> list[float]:
    meter = Meter(of.place.log)
    return [of.train_step(meter) for _ in range(count)]


def tensors_of(of: Trainer) -> dict[str, torch.Tensor]:
    of.save()
    return read_checkpoint(checkpoints(of.place.checkpoints)[-1])[1]


# -- training


@pytest.mark.parametrize("kinds", [T5, BERT])
def test_sibling_when_cut_off_anywhere_and_resumed_is_the_same_bit_for_bit(
    packed: World, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    recipe = recipe_from(raw_sibling(*kinds))
    uncut = trainer(packed, recipe)
    found, tensors = steps(uncut, 12), tensors_of(uncut)
    for cut in (1, 5, 6, 7, 11):  # 6: between span corruption and its adaptation
        uncut.place.checkpoints.rename(tmp_path / f"before{cut}")
        first = trainer(packed, recipe)
        begun = steps(first, cut)
        first.save()
        steps(first, 1)  # work that the cut loses
        torch.manual_seed(1234)
        second = trainer(packed, recipe)
        assert begun + steps(second, 12 - cut) == found
        again = tensors_of(second)
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("kinds", [T5, BERT])
def test_sibling_when_computed_in_parts_takes_the_same_steps(packed: World, kinds: tuple[str, ...]) -> None:
    recipe = recipe_from(raw_sibling(*kinds))
    whole = steps(trainer(packed, recipe), 8)
    parts = steps(trainer(packed, replace(recipe, train=replace(recipe.train, part_tokens=48))), 8)
    assert parts == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(("kinds", "least"), [(("spans",), 1.0), (("prefix",), 1.0), (BERT, 1.0)])
def test_loss_when_a_small_sibling_trains_falls(packed: World, kinds: tuple[str, ...], least: float) -> None:
    raw = raw_sibling(*kinds)
    raw["train"]["steps"] = 60
    found = steps(trainer(packed, recipe_from(raw)), 60)
    assert sum(found[-5:]) / 5 < sum(found[:3]) / 3 - least


def test_objectives_when_they_follow_each_other_have_a_schedule_each(packed: World) -> None:
    raw = raw_sibling(*T5)
    raw["train"] |= {"steps": 20, "log_every": 1}
    recipe = recipe_from(raw)
    assert trainer(packed, recipe).run()
    lines = [json.loads(line) for line in (packed.work / "train.jsonl").read_text().splitlines()]
    one = [rate_at(step, recipe.train, 10) for step in range(10)]
    assert [line["rate"] for line in lines] == one + one
    assert one[0] == 0.5
    assert one[-1] == pytest.approx(0.25)


def test_checkpoint_between_objectives_is_kept_and_evaluated(packed: World) -> None:
    raw = raw_sibling(*T5)
    raw["train"]["checkpoint_every"] = 1
    of = trainer(packed, recipe_from(raw))
    assert of.run()
    assert [file.stem for file in checkpoints(of.place.checkpoints)] == ["00000006", "00000011", "00000012"]
    first, last = map(json.loads, of.place.evaluations.read_text().splitlines())
    assert (first["step"], last["step"]) == (6, 12)
    assert set(last["kept_back"]) == {"wikipedia (spans)", "wikipedia (prefix)"}
    assert set(last["kept_back"]["wikipedia (spans)"]) == {"nats_per_token"}
    assert last["kept_back"]["wikipedia (prefix)"]["bits_per_byte"] > 0
    assert last["probes"][0]["rows"] == 12


# -- exported


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exported folders by name, of models that have learnt a little; texts are packed once."""
    root = tmp_path_factory.mktemp("siblings")
    world: World = conftest.world.__wrapped__(root)  # type: ignore[attr-defined]
    recipe = recipe_from(raw_sibling(*T5))
    pack_stage(Texts(recipe, world.data, world.corpus), world.work)
    made = {}
    for name, kinds in (("t5", T5), ("bert", BERT)):
        where = Place(root / name, world.data, packed=world.work)
        sibling = recipe_from(raw_sibling(*kinds))
        assert Trainer(sibling, where, load_tokenizer(where.texts / "tokenizer")).run()
        made[name] = export(sibling, where, root / name / "export")
        if name == "t5":
            made["t5-spans"] = export(sibling, where, root / name / "export-spans", after="spans")
    return made


def loaded(folder: Path) -> Backbone:
    return load_backbone(BackboneConfig(str(folder), dtype="float32", device="cpu"))


def ours(folder: Path, texts: list[str]) -> torch.Tensor:
    """Label scores by the objective itself, of the weights as the file holds them."""
    name = folder.parent.name
    after = "spans" if folder.name.endswith("spans") else None
    recipe = recipe_from(raw_sibling(*(T5 if name == "t5" else BERT)))
    where = Place(folder.parent, folder, packed=folder.parents[1] / "work")
    model, _ = trained_model(recipe, where, after=after)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    objective = next(iter(objectives_of(recipe, load_tokenizer(where.texts / "tokenizer")).values()))
    return objective.label_scores(model, texts, [word for (word,) in WORDS.values()])


@pytest.mark.parametrize(
    ("name", "family", "template"),
    [
        ("t5", "seq2seq", "Review: {text}\nSentiment:"),
        ("t5-spans", "seq2seq", "Review: {text}\nSentiment:"),
        ("bert", "masked", "Review: {text}\nSentiment:<mask>"),
    ],
)
def test_sibling_when_exported_loads_in_chorus_and_scores_labels_as_it_was_trained(
    folders: dict[str, Path], name: str, family: str, template: str
) -> None:
    backbone = loaded(folders[name])
    assert backbone.family == family
    assert backbone.runner_name == "fast"
    words = compile_verbalizer(backbone.tokenizer, WORDS)
    tokenizer = backbone.tokenizer
    encoder = Encoder(tokenizer, parse_template(template), default_bos(tokenizer), words, 64)
    rows = [encoder.encode(Example(0, {"text": text}, label="positive")) for text in SENTENCES]
    if name == "bert":
        assert rows[0].row.ids[0] == BOS
    assert rows[0].row.ids[-1] == EOS
    found = label_scores(backbone, words, None, rows)
    wanted = ours(folders[name], [f"Review: {text}\nSentiment:" for text in SENTENCES])
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)


def test_sibling_when_exported_says_what_it_learnt_and_how_long(folders: dict[str, Path]) -> None:
    said = {name: json.loads((folder / "provenance.json").read_text()) for name, folder in folders.items()}
    assert said["t5"]["objectives"] == {"spans": 6, "prefix": 6}
    assert said["t5-spans"]["objectives"] == {"spans": 6}
    assert said["bert"]["objectives"] == {"masked": 12}
    assert [said[name]["tokens_trained"] for name in ("t5-spans", "t5", "bert")] == [1152, 2304, 2304]
    weights = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    assert any(not torch.equal(weights["t5"][name], weights["t5-spans"][name]) for name in weights["t5"])
    assert {one.dtype for one in weights["t5"].values()} == {torch.bfloat16}


def test_export_when_asked_for_what_was_not_learnt_says_so(packed: World) -> None:
    recipe = recipe_from(raw_sibling(*T5))
    of = trainer(packed, recipe)
    of.run(until=3)
    with pytest.raises(WorkError, match="no checkpoint of step 6"):
        trained_model(recipe, place(packed), after="spans")
    with pytest.raises(WorkError, match="no objective masked; it has spans, prefix"):
        trained_model(recipe, place(packed), after="masked")
    with pytest.raises(WorkError, match="another recipe"):
        trainer(packed, recipe_from(raw_sibling("spans")))


# -- recipes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phases": [("objective", "speech")]}, "no objective speech; there is causal, masked, spans, prefix"),
        ({"phases": [("objective", "masked")]}, "not of one kind of model"),
        ({"phases": [], "train": {"warm_up": 6}}, "shorter than the training of each"),
    ],
)
def test_recipe_when_its_objectives_cannot_be_says_why(change: dict[str, Any], message: str) -> None:
    raw = raw_sibling(*T5)
    raw["phases"][1] |= dict(change["phases"])
    raw["train"] |= change.get("train", {})
    with pytest.raises(RecipeError, match=message):
        recipe_from(raw)


def test_recipe_when_an_objective_comes_back_is_refused() -> None:
    with pytest.raises(RecipeError, match="must follow each other"):
        recipe_from(raw_sibling("spans", "prefix", "spans"))


def test_phases_when_no_step_is_theirs_alone_end_where_they_are_left() -> None:
    raw = raw_sibling("spans", "spans", "prefix")
    raw["phases"][0]["until"], raw["phases"][1]["until"] = 0.35, 0.55
    raw["train"]["steps"] = 20
    recipe = recipe_from(raw)
    assert recipe.phase_ends() == [7, 11, 20]
    assert [(of.objective, of.begin, of.end) for of in recipe.stretches()] == [("spans", 0, 11), ("prefix", 11, 20)]
    assert [recipe.stretch_at(step).objective for step in (0, 10, 11, 19)] == ["spans", "spans", "prefix", "prefix"]


@pytest.mark.parametrize(("file", "kinds"), [("sibling-t5.toml", T5), ("sibling-bert.toml", BERT)])
def test_sibling_recipes_that_ship_read_the_shards_of_the_backbone(file: str, kinds: tuple[str, ...]) -> None:
    backbone, sibling = read_recipe(FOLDER / "chorus.toml"), read_recipe(FOLDER / file)
    assert sibling.packing_key() == backbone.packing_key()
    assert tuple(of.objective for of in sibling.stretches()) == kinds
    assert sibling.probes == backbone.probes
    assert sibling.training_key() != backbone.training_key()
    assert "objectives" not in backbone.training_key()
    with torch.device("meta"):
        model = kind_of_model(sibling).build_model(sibling, sibling.tokenizer.vocabulary)
    assert 5e6 < sum(one.numel() for one in model.parameters()) < 6.5e6


def test_small_size_that_ships_reads_as_many_tokens_as_the_backbone_in_its_first_quarter() -> None:
    backbone, small = read_recipe(FOLDER / "chorus.toml"), read_recipe(FOLDER / "size-small.toml")
    assert small.packing_key() == backbone.packing_key()
    assert min(backbone.kept_steps()) == small.train.steps
    with torch.device("meta"):
        sizes = [
            sum(one.numel() for one in kind_of_model(of).build_model(of, of.tokenizer.vocabulary).parameters())
            for of in (small, backbone)
        ]
    assert 3.5 < sizes[1] / sizes[0] < 4.5


def test_recipe_when_it_extends_another_is_that_one_with_its_changes(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(written(tmp_path).read_text())
    child = tmp_path / "child.toml"
    child.write_text('extends = "base.toml"\nname = "child"\n[train]\nsteps = 30\n')
    recipe, base = read_recipe(child), read_recipe(tmp_path / "base.toml")
    assert recipe == replace(base, name="child", train=replace(base.train, steps=30))
    for broken, message in (('extends = "child.toml"', "extends another"), ('extends = "gone.toml"', "cannot be read")):
        (tmp_path / "broken.toml").write_text(broken)
        with pytest.raises(RecipeError, match=message):
            read_recipe(tmp_path / "broken.toml")


# -- the command


def sibling_file(folder: Path, *kinds: str, **changes: Any) -> Path:
    file = folder / "sibling.toml"
    file.write_text(toml(raw_sibling(*kinds) | changes), encoding="utf-8")
    return file


def test_command_when_texts_are_packed_elsewhere_makes_both_models_and_leaves_them(
    packed: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sibling_file(tmp_path, *T5)
    times = {one: one.stat().st_mtime_ns for one in packed.work.rglob("*")}
    own = World(packed.data, packed.corpus, tmp_path / "t5")
    assert run(own, "all", file, "--packed", str(packed.work)) == 0
    assert run(own, "export", file, "--packed", str(packed.work), "--after", "spans") == 0
    assert run(own, "evaluate", file, "--packed", str(packed.work), "--after", "spans") == 0
    assert "step 6: wikipedia (spans)" in capsys.readouterr().err
    assert {one: one.stat().st_mtime_ns for one in packed.work.rglob("*")} == times
    assert {one.name for one in own.work.iterdir()} >= {"checkpoints", "export", "export-spans", "train.jsonl"}
    assert not (own.work / "shards").exists()


def test_command_when_texts_are_packed_by_another_recipe_refuses_them(
    packed: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = World(packed.data, packed.corpus, tmp_path / "own")
    for stage in ("tokenizer", "pack", "train"):
        file = sibling_file(tmp_path, *BERT, seed=8)
        assert run(own, stage, file, "--packed", str(packed.work)) == 1
        assert "packed by another recipe" in capsys.readouterr().err
    assert run(own, "pack", sibling_file(tmp_path, *BERT), "--packed", str(tmp_path)) == 1
    assert "run the stage that writes it" in capsys.readouterr().err


def test_trainer_when_a_source_was_not_packed_names_it(packed: World) -> None:
    raw = raw_sibling(*BERT)
    raw["sources"]["more"] = {"file": "wikipedia.txt"}
    raw["phases"][0]["mixture"] = {"more": 1.0}
    with pytest.raises(PretrainingError, match="more was not packed"):
        trainer(packed, recipe_from(raw))
