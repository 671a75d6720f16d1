"""Rows of a starter, what is told of its answers, and the table and page that show it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.compare.scores import score
from benchmarks.starters import RECIPES, Recipe
from benchmarks.starters.page import BEGIN, END, ordered, table, told, write_page, write_table
from benchmarks.starters.rows import DEV_ROWS, MAX_CHARS, Split, references_of, split_of_sets
from benchmarks.starters.scoring import LABEL_ROWS, evaluate, of_labels, of_texts
from prompt_store.starters import Starter, read_starters

README = Path(__file__).resolve().parents[3] / "README.md"


def write(folder: Path, name: str, **parts: Sequence[Any]) -> None:
    (folder / name).mkdir(parents=True)
    for part, rows in parts.items():
        (folder / name / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def labelled(*texts: str) -> list[dict[str, str]]:
    return [{"text": text, "label": "good"} for text in texts]


def test_split_of_sets_leaves_out_training_rows_that_are_asked_later(tmp_path: Path) -> None:
    write(tmp_path, "a", train=labelled("one", "two", "three"), dev=labelled("two"), test=labelled("three"))
    write(tmp_path, "b", train=labelled("four", "x" * (MAX_CHARS + 1)))
    split = split_of_sets(tmp_path, ("a", "b"), "a")
    assert sorted(row["text"] for row in split.train) == ["four", "one"]
    assert (split.dev, split.test, split.details) == (labelled("two"), labelled("three"), {"left_out": 2})
    assert split_of_sets(tmp_path, ("a", "b"), "a") == split


def test_split_of_sets_without_dev_rows_cuts_them_from_the_training_rows(tmp_path: Path) -> None:
    write(tmp_path, "a", train=labelled(*map(str, range(DEV_ROWS + 50))), test=labelled("t"))
    split = split_of_sets(tmp_path, ("a",), "a")
    assert (len(split.dev), len(split.train)) == (DEV_ROWS, 50)
    assert not {row["text"] for row in split.dev} & {row["text"] for row in split.train}
    assert "left_out" not in split.details


def test_split_of_texts_learns_from_first_references_and_is_judged_by_all(tmp_path: Path) -> None:
    held = [{"input": "name[B]", "references": ["B it is.", "It is B."]}]
    train = [{"input": "name[A]", "output": "A it is."}, {"input": "name[B]", "output": "B!"}]
    write(tmp_path, "e", train=train, dev=[{"input": "name[C]", "references": ["C.", "See."]}], test=held)
    split = split_of_sets(tmp_path, ("e",), "e")
    assert split.train == train[:1]
    assert split.dev == [{"input": "name[C]", "output": "C."}]
    assert split.test == held
    assert [references_of(row) for row in (*held, *train[:1])] == [["B it is.", "It is B."], ["A it is."]]


def test_of_labels_counts_hits_and_a_row_without_an_answer_as_wrong() -> None:
    rows = [{"text": "a", "label": "good"}, {"text": "b", "label": "good"}, {"text": "c", "label": "bad"}]
    found = of_labels(rows, [{"label": "good"}, {"label": None}, {"label": "bad"}])
    assert (found.score, found.n, found.details) == (2 / 3, 3, {"hits": 2})
    assert found.baselines == {"majority": 2 / 3}
    assert found.interval[0] < 2 / 3 < found.interval[1]


def test_of_many_labels_tells_each_ones_hits() -> None:
    rows = [{"text": "a", "label": f"l{number}"} for number in range(9)] + [{"text": "b", "label": "l0"}]
    found = of_labels(rows, [{"label": "l0"}] * 10)
    assert found.details["by_label"] == {"l0": [2, 2]} | {f"l{number}": [0, 1] for number in range(1, 9)}


def test_of_texts_scores_by_the_comparisons_metrics_beside_the_input() -> None:
    rows = [
        {"input": "name[Zoe], food[fish]", "references": ["Zoe has fish for us.", "Zoe serves good fish for us."]},
        {"input": "name[Ann], food[ham]", "references": ["Ann has ham for us."]},
    ]
    given = ["Zoe serves good fish for us.", None]
    found = of_texts(rows, [{"text": text} for text in given])
    expected = score("rouge_l", [row["references"] for row in rows], ["Zoe serves good fish for us.", ""])
    assert (found.metric, found.score, found.interval) == ("rouge_l", 0.5, expected["rouge_l"].interval)
    assert found.details["bleu"] == expected["bleu"].describe()
    assert 0 < found.baselines["input"] < 0.5
    assert (found.details["facts_told"], found.details["facts_told_by_people"]) == (0.5, 1.0)


def test_of_texts_without_facts_in_brackets_counts_none() -> None:
    found = of_texts([{"input": "the sea", "references": ["The sea."]}], [{"text": "the sea"}])
    assert set(found.details) == {"bleu", "bleu_of_input"}


def recipe_of(task: str, words: dict[str, str] | None, caution: str = "") -> Recipe:
    return Recipe(task, ("s",), "s", "<prompt:20>{text}\nSo:", words, 10, "What?", "Ours", caution)


def test_evaluate_asks_in_parts_without_the_answers_and_keeps_what_the_split_says() -> None:
    asked: list[list[dict[str, Any]]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/v1/tasks/mood/versions":
            words = {"good": [" good"], "bad": [" bad"]}
            assert body == {"template": "{text}\nSo:", "verbalizer": words, "alias": None}
            return httpx.Response(201, json={"version": 7})
        asked.append(body["requests"])
        if asked[-1][0]["task"] == "mood@7":
            return httpx.Response(200, json={"outputs": [{"label": "good", "error": None}] * len(asked[-1])})
        outputs: list[Any] = [{"label": "good", "error": None} for _ in asked[-1]]
        outputs[0] = {"label": None, "error": {"code": "context_too_long"}}
        return httpx.Response(200, json={"outputs": outputs})

    client = httpx.Client(base_url="http://h", transport=httpx.MockTransport(answer))
    rows = [{"text": str(number), "label": "good"} for number in range(LABEL_ROWS + 1)]
    split = Split([], [], rows, {"left_out": 4})
    found = evaluate(client, recipe_of("mood", {"good": " good", "bad": " bad"}, "with care"), split)
    assert [len(part) for part in asked] == [LABEL_ROWS, 1, LABEL_ROWS, 1]
    assert asked[1] == [{"task": "mood", "input": {"text": str(LABEL_ROWS)}}]
    assert asked[3] == [{"task": "mood@7", "input": {"text": str(LABEL_ROWS)}}]
    assert found.baselines == {"majority": 1.0, "zero_shot": 1.0}
    hits = LABEL_ROWS - 1
    assert found.details == {"data": "s", "hits": hits, "left_out": 4, "errors": 2, "caution": "with care"}


@pytest.fixture(scope="module")
def shipped() -> list[Starter]:
    return read_starters()


def test_readme_holds_the_table_of_the_shipped_cards(shipped: list[Starter]) -> None:
    inside = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert inside.strip().splitlines() == table(shipped)


def test_table_goes_between_the_marks_and_nowhere_else(shipped: list[Starter], tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_table(file, shipped[:1])
    text = file.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n| starter |")
    assert text.endswith(f"|\n{END}\nafter\n")
    assert "old" not in text
    file.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="no marks"):
        write_table(file, shipped)


def test_page_tells_of_every_starter_in_the_recipes_order(shipped: list[Starter], tmp_path: Path) -> None:
    write_page(tmp_path / "p.md", shipped)
    titles = [line[3:] for line in (tmp_path / "p.md").read_text(encoding="utf-8").splitlines() if line[:3] == "## "]
    assert titles == [one.task for one in ordered(shipped)]
    assert titles == [recipe.task for recipe in RECIPES if recipe.task in titles]
    assert len(titles) == len(shipped)


def test_told_and_table_of_a_text_starter_have_both_metrics_and_what_is_to_beat(shipped: list[Starter]) -> None:
    rows = [{"input": "name[Zoe]", "references": ["Zoe has fish for us."]}]
    found = of_texts(rows, [{"text": "Zoe has fish for us."}])
    found = found.model_copy(update={"details": {"data": "e2e", **found.details}})
    assert told(found) == "ROUGE-L 1.000 (1.000–1.000), BLEU 1.000 (1.000–1.000)"
    one = Starter("describe", shipped[0].spec, (shipped[0].card[0], found), b"", shipped[0].meta)
    assert table([one])[-1].startswith("| describe | e2e, 1 rows | ROUGE-L 1.000")
    assert table([one])[-1].endswith(f"| – | ROUGE-L {found.baselines['input']:.3f} by the input itself |")
    bare = found.model_copy(update={"baselines": found.baselines | {"zero_shot": 0.25}})
    one = Starter("describe", shipped[0].spec, (shipped[0].card[0], bare), b"", shipped[0].meta)
    assert "| ROUGE-L 0.250 | ROUGE-L" in table([one])[-1]
