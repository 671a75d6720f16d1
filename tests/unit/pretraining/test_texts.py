from __future__ import annotations

import lzma
import random
from pathlib import Path

import pytest

from pretraining.corpus import is_kept_back, read_records, sentences
from pretraining.documents import ANSWER, whole
from pretraining.errors import WorkError
from pretraining.exercises import exercise, part_of_review
from pretraining.reading import Reading
from pretraining.surface import closed, spaced, without_stop
from pretraining.wordings import NLI, WORDINGS


def test_records_when_compressed_are_those_of_the_plain_file(tmp_path: Path) -> None:
    text = "One\n\nwith a gap\n\x1e\n\n\x1e\nTwo: caf\u00e9\u2028same line\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="\n")
    with lzma.open(tmp_path / "a.txt.xz", "wt", encoding="utf-8", newline="\n") as out:
        out.write(text)
    expected = ["One\n\nwith a gap", "Two: caf\u00e9\u2028same line"]
    assert list(read_records(tmp_path / "a.txt")) == list(read_records(tmp_path / "a.txt.xz")) == expected


def test_records_when_one_is_as_long_as_a_novel_are_its_parts(tmp_path: Path) -> None:
    lines = [f"line {number} " + "x" * 90 for number in range(1000)]
    (tmp_path / "novel.txt").write_text("\n".join(lines), encoding="utf-8")
    parts = list(read_records(tmp_path / "novel.txt"))
    assert len(parts) > 3
    assert "\n".join(parts).split("\n") == lines


def test_records_when_the_file_is_missing_say_which(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"none\.txt"):
        list(read_records(tmp_path / "none.txt"))


def test_records_kept_back_are_about_their_share() -> None:
    assert 150 < sum(is_kept_back(f"record {number}", 0.1) for number in range(2000)) < 250


def test_sentences_when_a_line_holds_several_are_cut() -> None:
    assert sentences('He ran. "Stop!" She did.\nNew line') == ["He ran.", '"Stop!"', "She did.", "New line"] or (
        sentences("He ran. She did.\nNew line") == ["He ran.", "She did.", "New line"]
    )


@pytest.mark.parametrize(
    ("text", "apart"),
    [("A dog, wet, can't swim.", "A dog , wet , ca n't swim ."), ("It's (not) mine!", "It 's ( not ) mine !")],
)
def test_text_when_spaced_and_closed_is_the_same(text: str, apart: str) -> None:
    assert spaced(text) == apart
    assert closed(apart) == text
    assert without_stop(apart) == text.rstrip(".")


@pytest.mark.parametrize("name", sorted(WORDINGS))
def test_wordings_when_filled_name_the_label_as_their_one_answer(name: str) -> None:
    fields = {
        "text": "t one",
        "premise": "p two",
        "hypothesis": "h three",
        "question1": "q four",
        "question2": "q five",
    }
    for wording in WORDINGS[name]:
        for label, word in wording.words.items():
            document = wording.document(fields, label)
            assert [piece.text for piece in document if piece.kind == ANSWER] == [word]
            assert "{" not in whole(document)


def test_wordings_when_counted_are_many_for_each_label() -> None:
    for wordings in {id(one): one for one in WORDINGS.values()}.values():
        labels = {label for wording in wordings for label in wording.words}
        for label in labels:
            least = 2 if label == "not_entailment" else 8
            assert len({one.before for one in wordings if one.covers(label)}) >= least - 1


def test_exercise_of_two_way_inference_uses_two_way_wordings_alone() -> None:
    rng = random.Random(0)
    row = {"premise": "p", "hypothesis": "h", "label": "not_entailment"}
    answers = {piece.text for _ in range(50) for piece in exercise("rte", row, rng) if piece.kind == ANSWER}
    assert answers == {" no"}
    assert len(NLI) > 10


def test_review_when_long_is_cut_to_what_fits() -> None:
    rng = random.Random(0)
    text = " ".join(f"Sentence number {number} is here." for number in range(300))
    parts = [part_of_review(text, rng) for _ in range(50)]
    assert max(map(len, parts)) <= 1210
    assert any("…" in part for part in parts)
    assert any(part.endswith("299 is here.") and len(part) < 120 for part in parts)


def test_reading_when_given_an_article_asks_what_the_text_answers() -> None:
    record = (
        "Oak Bridge\n\nOak Bridge (built 1810) is a wooden bridge in the north of the county. "
        "It was closed to carts after the great flood of 1870. The bridge was then given to the village museum."
    )
    kinds, missing, followed = set(), 0, 0
    for seed in range(40):
        for document in Reading("wikipedia", random.Random(seed)).exercises(record):
            text = whole(document)
            (answer,) = [piece.text.strip() for piece in document if piece.kind == ANSWER]
            if "What is Oak Bridge?" in text or "Kind:" in text:
                kinds.add(answer)
            if "____" in text and "Blank:" in text:
                missing += 1
                assert answer.lower() in record.lower().replace("'", " '")
            if "Next sentence:" in text:
                followed += 1
                first, second = (
                    line.split(": ", 1)[1] for line in text.splitlines() if line.startswith(("First", "Second"))
                )
                assert (answer == "yes") == (f"{first} {second}" in record)
    assert kinds == {"a wooden bridge"}
    assert missing > 3
    assert followed > 3


def test_reading_when_a_record_holds_no_sentence_makes_nothing() -> None:
    assert not list(Reading("novels", random.Random(0)).exercises("Too short."))
