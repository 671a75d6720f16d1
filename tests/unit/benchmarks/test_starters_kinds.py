"""The rule that labels articles by their first sentence, and the rows that are made of them."""

from __future__ import annotations

import lzma
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.starters.articles import (
    DEV_ARTICLES,
    MAX_CHARS,
    MIN_CHARS,
    MOST,
    TEST_ARTICLES,
    TRAIN_ROWS,
    Article,
    TooFewArticles,
    articles,
    kind_split,
    passages,
    split_of,
)
from benchmarks.starters.kinds import LABEL_OF, NOUNS, gives_away, kind_of
from pretraining.corpus import is_kept_back


@pytest.mark.parametrize(
    ("title", "first", "label"),
    [
        ("Orlow", "Orlow (German: Orlau) is a small town in the south of the plain.", "city"),
        ("Una Brandt", "Una Brandt (born 1 May 1950) is a Danish actress, director and editor.", "actor"),
        ("Una Brandt", "Una Brandt was a poet and one of the founders of the club.", "writer"),
        ("Hadrin II", "Hadrin II was King of Orland from 1210 until his death.", "ruler"),
        ("The Long Field", "The Long Field is a 1961 Norwegian drama film directed by Una Brandt.", "film"),
        ("Vessium", "Vessium is a chemical element with symbol Vs.", "substance"),
        ("Lake Orl", "Lake Orl is one of the deepest lakes there are, and a lake of salt.", None),
    ],
)
def test_kind_of_a_defining_sentence_is_its_nouns_label(title: str, first: str, label: str | None) -> None:
    assert kind_of(title, first) == label


@pytest.mark.parametrize(
    ("title", "first"),
    [
        ("Una Brandt", "Una Brandt is a Danish film director."),  # the noun is not the phrase's head
        ("Una Brandt", "Una Brandt is a Danish novelist and painter."),  # two labels
        ("Una Brandt", "Una Brandt is a Danish film and stage actor."),  # a list of what the head is of
        ("Orlow", "Orlow is a fictional city."),
        ("Lisp", "Lisp is a programming language."),
        ("Airline", "An airline is a company that flies."),  # a class, not one of it
        ("Sidespeak", "Sidespeak is language that says nothing."),
        ("Supremum", "The supremum is the least element of a set."),
        ("Geography of Orland", "Orland is a country in the north."),  # the article is about something else
        ("Orlow", "It rained."),
        ("Orlow", ""),
    ],
)
def test_kind_of_another_sentence_is_nothing(title: str, first: str) -> None:
    assert kind_of(title, first) is None


def test_every_noun_gives_itself_away_in_the_plural_too() -> None:
    for noun in LABEL_OF:
        assert gives_away(f"It has a {noun.upper()}.")
    for plural in ("cities", "countries", "species", "genera", "companies", "bays", "actresses", "fishes", "statesmen"):
        assert gives_away(f"Some {plural} there.")
    assert not gives_away("Its citizens filmed riverside weddings.")


def test_passages_hold_no_label_and_no_heading_and_are_of_bounded_length() -> None:
    fine = "It was built of red brick by people who came over the hills in that year."
    found = list(passages([fine, "The city grew fast in all of those happy years.", "Early years.", *[fine] * 60]))
    assert len(found) == MOST
    assert all(MIN_CHARS <= len(text) <= MAX_CHARS for text in found)
    assert not any(gives_away(text) or "Early years." in text for text in found)
    assert list(passages([fine])) == []


def record(number: int, noun: str = "town") -> str:
    behind = " ".join(f"Its {number} people of the year {year} went there by the old railway." for year in range(30))
    return f"Place {number}\n\nPlace {number} is a {noun} in the south. {behind}"


def test_articles_are_labelled_once_a_title_and_know_what_was_kept_back() -> None:
    records = [record(1), record(2, "river"), record(1), "Nothing\n\nIt rained. And rained again on that day."]
    found = list(articles(records, 0.5))
    assert [(article.title, article.label) for article in found] == [("Place 1", "city"), ("Place 2", "water")]
    assert [article.kept_back for article in found] == [is_kept_back(text, 0.5) for text in records[:2]]
    assert all("people of the year 0" in article.passages[0] for article in found)


def made(count: int, of: int = MOST) -> list[Article]:
    """So many articles of each label, each with a digest of its own; the lowest ones were kept back."""
    found = []
    for place, label in enumerate(NOUNS):
        for number in range(count):
            texts = tuple(f"{label} {number} {turn}" for turn in range(of))
            digest = number.to_bytes(4, "big") + place.to_bytes(4, "big")
            found.append(Article(f"{label} {number}", label, texts, digest, kept_back=number < 3))
    return found[::-1]


def test_split_is_balanced_and_no_article_is_in_two_parts() -> None:
    split = split_of(made(90))
    for rows, each in ((split.train, TRAIN_ROWS), (split.dev, DEV_ARTICLES), (split.test, TEST_ARTICLES)):
        assert Counter(row["label"] for row in rows) == dict.fromkeys(NOUNS, each)
    parts = [{row["text"].rsplit(" ", 1)[0] for row in rows} for rows in (split.train, split.dev, split.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert len({row["text"] for row in (*split.train, *split.dev, *split.test)}) == sum(
        len(rows) for rows in (split.train, split.dev, split.test)
    )


def test_split_asks_what_pretraining_never_read_first_and_counts_the_rest() -> None:
    split = split_of(made(90))
    texts = {row["text"] for row in split.test}
    assert {f"{label} {number} 0" for label in NOUNS for number in range(3)} <= texts
    assert split.details["test_articles_in_pretraining"] == len(NOUNS) * (TEST_ARTICLES - 3)
    assert split.details["articles"] == dict.fromkeys(NOUNS, 90)


def test_split_does_not_depend_on_the_articles_order() -> None:
    assert split_of(made(90)) == split_of(made(90)[::-1])


@pytest.mark.parametrize(("count", "of"), [(TEST_ARTICLES, MOST), (60, 1)])
def test_split_of_too_few_articles_raises(count: int, of: int) -> None:
    with pytest.raises(TooFewArticles, match="city"):
        split_of(made(count, of))


def test_kind_split_reads_the_corpus(tmp_path: Path) -> None:
    nouns = [next(iter(of)) for of in NOUNS.values()]
    texts = [record(1000 * place + number, noun) for place, noun in enumerate(nouns) for number in range(80)]
    with lzma.open(tmp_path / "wikipedia_en.txt.xz", "wt", encoding="utf-8", preset=0) as file:
        file.write("\n\x1e\n".join(texts) + "\n")
    split = kind_split(tmp_path)
    assert len(split.test) == TEST_ARTICLES * len(NOUNS)
    assert 0 <= split.details["test_articles_in_pretraining"] <= len(split.test)
    assert not any(gives_away(row["text"]) for row in (*split.train, *split.dev, *split.test))
