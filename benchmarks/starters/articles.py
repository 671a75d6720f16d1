"""Rows of the task `kind`: passages of encyclopedia articles behind their first sentence, labelled by that sentence.

A passage holds no sentence with any label's noun in it, so that the answer is not written there. An article is in one
split alone, and its text decides in which: those whose digest is lowest are test articles. That is the order in which
pretraining keeps articles back (`pretraining.corpus.is_kept_back`), so whatever it never reads is among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from benchmarks.starters.kinds import NOUNS, gives_away, kind_of, told_apart
from benchmarks.starters.rows import Split
from pretraining.corpus import is_kept_back, read_records
from pretraining.recipe import read_recipe

FILE = "wikipedia_en.txt.xz"
RECIPE = Path(__file__).parents[2] / "pretraining" / "chorus.toml"
TEST_ARTICLES, DEV_ARTICLES, TRAIN_ROWS = 27, 12, 180
"""Of each label: articles asked once each, and rows to learn from, several of an article where there are few."""

MIN_WORDS, MAX_WORDS = 6, 60  # of a sentence: neither a heading nor a table
MIN_CHARS, MAX_CHARS, MOST = 120, 400, 6  # of a passage, and passages of an article


@dataclass(frozen=True)
class Article:
    """`passages`: one at least. `kept_back`: whether pretraining left it unread."""

    title: str
    label: str
    passages: tuple[str, ...]
    digest: bytes
    kept_back: bool


def kind_split(corpus: Path) -> Split:
    """Splits with equal numbers of rows of each label. Raises WorkError without the corpus, TooFewArticles."""
    share = read_recipe(RECIPE).pack.kept_back
    return split_of(articles(read_records(corpus / FILE), share))


def articles(records: Iterable[str], kept_back: float) -> Iterator[Article]:
    """Those that the rule labels and that have a passage; of articles with one title the first."""
    titles: set[str] = set()
    for record in records:
        title, first, behind = told_apart(record)
        label = kind_of(title, first)
        cut = tuple(passages(behind)) if label else ()
        if label and cut and title not in titles:
            titles.add(title)
            yield Article(
                title, label, cut, blake2b(record.encode(), digest_size=8).digest(), is_kept_back(record, kept_back)
            )


def passages(sentences: Iterable[str]) -> Iterator[str]:
    """Neighbouring sentences that give no label away, joined up to `MAX_CHARS`; `MOST` passages at most."""
    made, held = 0, ""
    for sentence in sentences:
        if not MIN_WORDS <= len(sentence.split()) <= MAX_WORDS or len(sentence) > MAX_CHARS or gives_away(sentence):
            continue
        if held and len(held) + 1 + len(sentence) > MAX_CHARS:
            if len(held) >= MIN_CHARS:
                yield held
                made += 1
            if made == MOST:
                return
            held = ""
        held = f"{held} {sentence}" if held else sentence
    if len(held) >= MIN_CHARS:
        yield held


def split_of(found: Iterable[Article]) -> Split:
    """Test and dev rows from articles of their own, one each; training rows from the rest."""
    by_label: dict[str, list[Article]] = {label: [] for label in NOUNS}
    for article in sorted(found, key=lambda article: article.digest):
        by_label[article.label].append(article)
    split = Split(train=[], dev=[], test=[])
    read = 0
    for label, every in by_label.items():
        held, rest = TEST_ARTICLES + DEV_ARTICLES, every[TEST_ARTICLES + DEV_ARTICLES :]
        train = list(_turns(rest))[:TRAIN_ROWS]
        if len(every) < held or len(train) < TRAIN_ROWS:
            raise TooFewArticles(f"{label}: {len(every)} articles, {len(train)} of {TRAIN_ROWS} rows to learn from")
        split.test.extend(_row(article) for article in every[:TEST_ARTICLES])
        split.dev.extend(_row(article) for article in every[TEST_ARTICLES:held])
        split.train.extend({"text": text, "label": label} for text in train)
        read += sum(not article.kept_back for article in every[:TEST_ARTICLES])
    split.details["test_articles_in_pretraining"] = read
    split.details["articles"] = {label: len(every) for label, every in by_label.items()}
    return split


class TooFewArticles(Exception):
    """A label has too few articles for splits of equal size."""


def _turns(of: Sequence[Article]) -> Iterator[str]:
    """The first passage of each article, then the second of each, and so on."""
    for turn in range(MOST):
        yield from (article.passages[turn] for article in of if turn < len(article.passages))


def _row(article: Article) -> dict[str, str]:
    return {"text": article.passages[0], "label": article.label}
