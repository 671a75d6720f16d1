from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.compare.tasks import Limits, read_task
from benchmarks.unseen import CUTS, disease_rows, family_rows, files_of, write_rows
from pretraining.recipe import read_recipe

FAMILIES, SAME_DISEASE = CUTS


def lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    facts = ["name[Cocum], familyFriendly[no]", "name[Cocum], familyFriendly[yes]", "name[Cocum]"]
    train = [{"input": one, "output": f"{one}, told {time} times"} for one in facts for time in range(8)]
    asked = [{"input": f"{one}, near[Sea]", "references": [f"{one} one", f"{one} two"]} for one in (*facts, *facts)]
    lines(tmp_path / "e2e" / "train.jsonl", train)
    lines(tmp_path / "e2e" / "dev.jsonl", asked)
    lines(tmp_path / "e2e" / "test.jsonl", asked)
    kinds = ("fever", "cough", "palsy", "cramp", "ulcer", "tumour")
    organs = ("heart", "lung", "liver", "brain", "skin", "eye", "bone", "ear")
    concepts = [
        {"id": f"{organ}{kind}", "name": f"{organ} {kind}", "synonyms": [f"{kind} of the {organ} (disorder)"]}
        for organ in organs
        for kind in kinds
    ]
    concepts += [{"id": "x", "name": "Xanthoma", "synonyms": ["xanthoma", "XANTHOMA [Ambiguous]"]}]
    lines(tmp_path / "disease_ontology" / "concepts.jsonl", concepts)
    return tmp_path


def test_families_are_labelled_by_the_fact_or_its_absence(data: Path) -> None:
    found = family_rows(data)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 24, "dev": 12, "test": 6}
    assert [row["label"] for row in found["test"]] == ["no", "yes", "unsaid"] * 2
    assert found["test"][0]["text"].endswith(" one")


def test_diseases_are_pairs_of_one_concept_or_two_balanced_in_each_split(data: Path) -> None:
    found = disease_rows(data)
    for rows in found.values():
        assert sum(row["label"] == "same" for row in rows) * 2 == len(rows) > 0
    for row in (row for rows in found.values() for row in rows):
        organ, kind = (set(one.split()) - {"of", "the"} for one in (row["first"], row["second"]))
        assert (organ == kind) == (row["label"] == "same")


def test_disease_names_lose_remarks_and_a_concept_left_with_one_name_asks_nothing(data: Path) -> None:
    texts = {text for rows in disease_rows(data).values() for row in rows for text in (row["first"], row["second"])}
    assert not any("(" in text or "[" in text for text in texts)
    own = [row for rows in disease_rows(data).values() for row in rows if row["label"] == "same"]
    assert len(own) == 48  # xanthoma's three spellings are one name


def test_no_concept_is_in_two_splits(data: Path) -> None:
    def concepts(rows: list[dict[str, str]]) -> set[frozenset[str]]:
        return {frozenset(row[name].split()) - {"of", "the"} for row in rows for name in ("first", "second")}

    found = disease_rows(data)
    assert not concepts(found["train"]) & concepts(found["test"])
    assert not concepts(found["train"]) & concepts(found["dev"])
    assert not concepts(found["dev"]) & concepts(found["test"])


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.name)
def test_rows_when_written_twice_are_the_same_and_compare_reads_them(data: Path, tmp_path: Path, cut: Any) -> None:
    write_rows(data, tmp_path / "once", [cut])
    write_rows(data, tmp_path / "again", [cut])
    for split in ("train", "dev", "test"):
        name = f"{cut.name}/{split}.jsonl"
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert [folder.name for folder in (tmp_path / "once").iterdir()] == [cut.name]
    task = read_task(files_of(cut, tmp_path / "once"), "causal", Limits())
    assert task.labels == tuple(cut.words)


def test_sets_they_are_cut_from_are_held_out_of_pretraining() -> None:
    held = read_recipe(Path("pretraining") / "chorus.toml").held_out
    assert {"e2e", "disease_ontology"} <= set(held)
