"""A small world to pretrain in: data sets and corpora of made-up sentences, and a recipe of a few steps."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pretraining.packing import Texts, pack_stage
from pretraining.recipe import Recipe, recipe_from

THINGS = ["dog", "cat", "bird", "horse", "child", "woman", "man", "farmer"]
DEEDS = ["sleeps", "eats", "runs", "sings", "waits", "reads", "swims", "works"]
PLACES = ["garden", "kitchen", "river", "street", "field", "house", "market", "forest"]
LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class World:
    data: Path
    corpus: Path
    work: Path


def raw_recipe() -> dict[str, Any]:
    """As TOML would give it."""
    mixture = {"wikipedia": 0.5, "nli": 0.25, "sentences": 0.125, "reading": 0.125}
    phase = {"rows": 4, "length": 48, "answer_weight": 5.0, "task_weight": 0.5}
    return {
        "name": "small", "seed": 7, "held_out": ["trec"],
        "tokenizer": {"vocabulary": 400, "sample_chars": 20_000},
        "shape": {"hidden": 32, "layers": 2, "heads": 2, "feed_forward": 64, "context": 64},
        "pack": {"kept_back": 0.1},
        "sources": {
            "wikipedia": {"file": "wikipedia.txt"},
            "nli": {"sets": ["snli"], "passes": 2},
            "sentences": {"sets": ["sst2"], "passes": 2},
            "reading": {"corpora": ["wikipedia"]},
        },
        "phases": [
            {"until": 0.5, **phase, "mixture": {"wikipedia": 1.0}},
            {"until": 1.0, **phase, "rows": 2, "length": 64, "mixture": mixture},
        ],
        "train": {
            "steps": 12, "warm_up": 2, "precision": "fp32", "compile": False,
            "log_every": 2, "checkpoint_every": 100, "evaluate_every": 100,
        },
        "probes": [{"data": "sst2", "wording": "Review: {text}\nSentiment:",
                    "words": {"positive": " positive", "negative": " negative"}}],
    }  # fmt: skip


def raw_sibling(*objectives: str) -> dict[str, Any]:
    """The small recipe, a phase an objective, half text and half exercises in each."""
    raw = raw_recipe()
    phase = {**raw["phases"][1], "rows": 4, "length": 48}
    shares = [(at + 1) / len(objectives) for at in range(len(objectives))]
    raw["phases"] = [{**phase, "until": until, "objective": of} for until, of in zip(shares, objectives, strict=True)]
    return raw


@pytest.fixture
def recipe() -> Recipe:
    return recipe_from(raw_recipe())


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Data and corpora; nothing packed yet."""
    made = World(tmp_path / "data", tmp_path / "corpus", tmp_path / "work")
    rng = random.Random(3)
    for split, count in (("train", 60), ("dev", 12), ("test", 12)):
        pairs = [
            {"premise": sentence(rng), "hypothesis": sentence(rng), "label": rng.choice(LABELS)} for _ in range(count)
        ]
        reviews = [{"text": sentence(rng), "label": rng.choice(("positive", "negative"))} for _ in range(count)]
        write_rows(made.data / "snli" / f"{split}.jsonl", pairs)
        write_rows(made.data / "sst2" / f"{split}.jsonl", reviews)
    write_rows(made.data / "trec" / "train.jsonl", [{"text": "Where does the blue whale sleep ?", "label": "location"}])
    records = [
        "\n".join((f"Article {number}", " ".join(sentence(rng).capitalize() for _ in range(12))))
        for number in range(50)
    ]
    made.corpus.mkdir()
    (made.corpus / "wikipedia.txt").write_text("\n\x1e\n".join(records), encoding="utf-8")
    return made


@pytest.fixture
def packed(world: World, recipe: Recipe) -> World:
    pack_stage(Texts(recipe, world.data, world.corpus), world.work)
    return world


def sentence(rng: random.Random) -> str:
    """Nine to eleven words, a number among them, so that no two are likely to be the same."""
    extra = rng.choice(("", "very ", "not so "))
    return (
        f"the {extra}old {rng.choice(THINGS)} {rng.choice(DEEDS)} in the {rng.choice(PLACES)} "
        f"at {rng.randint(100, 99999)} o'clock."
    )


def write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shorter(recipe: Recipe, **train: Any) -> Recipe:
    """The recipe with other training numbers."""
    return replace(recipe, train=replace(recipe.train, **train))


def toml(raw: dict[str, Any]) -> str:
    """JSON's scalars, lists and strings are TOML's; a table inline needs its own signs."""

    def one(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f'"{key}" = {one(inner)}' for key, inner in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(one, value)) + "]"
        return json.dumps(value)

    return "\n".join(f"{key} = {one(value)}" for key, value in raw.items())
