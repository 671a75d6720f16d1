"""What each starter task is: where its rows come from, how it is asked, how it learns, and what its card must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from app.backbone import parse_template
from benchmarks.starters.kinds import NOUNS
from prompt_store import Decoding, TaskSpec

BATCH = 32
PREFIX = {"type": "prefix_tuning"}
PLAIN = {"type": "prompt_tuning"}


@dataclass(frozen=True)
class Tries:
    """What is tried, each with each; the best on dev rows is the starter. `rates` are in units of the method's own
    learning rate. The first of each is what one single try takes."""

    rates: tuple[float, ...] = (1.0, 0.5, 2.0)
    seeds: tuple[int, ...] = (20, 21, 22)
    inits: tuple[str, ...] = ("vocab",)
    vectors: tuple[int, ...] = (20,)

    @property
    def size(self) -> int:
        return len(list(product(self.rates, self.seeds, self.inits, self.vectors)))


@dataclass(frozen=True)
class Recipe:
    """One starter task. `sets` and `test` are folders of the data; a task without `sets` is made from the corpus. A
    task without `words` writes free text, of `max_tokens` at most. `template` has one slot, `<prompt:N>`, whose N is
    the first of `tries.vectors`. `steps` are of 32 rows. `caution` goes onto the card."""

    task: str
    sets: tuple[str, ...]
    test: str
    template: str
    words: Mapping[str, str] | None
    steps: int
    description: str
    licence: str
    caution: str = ""
    tries: Tries = Tries()
    method: Mapping[str, Any] = field(default_factory=lambda: PLAIN)
    max_tokens: int = 32

    @property
    def from_corpus(self) -> bool:
        return not self.sets

    @property
    def source(self) -> str:
        """Names of the sets it learns from."""
        return " + ".join(self.sets) or self.test

    def with_vectors(self, count: int) -> str:
        """The template with another number of vectors."""
        return self.template.replace(f"<prompt:{self.tries.vectors[0]}>", f"<prompt:{count}>")

    def spec(self) -> TaskSpec:
        fields = parse_template(self.template).fields
        if self.words is None:
            decoding = Decoding(max_tokens=self.max_tokens)
            return TaskSpec(description=self.description, fields=fields, metric="rouge_l", decoding=decoding)
        return TaskSpec(description=self.description, fields=fields, labels=tuple(self.words))


KIND_CAUTION = (
    "labels are a rule's, read off each article's first sentence, not people's: of 100 rows read, 97 were right and 3 "
    "doubtful (a match called a game, a sea called a region, a grammar called a language); texts are what follows that "
    "sentence, without sentences that hold any label's noun. The backbone's pretraining has read nearly all of these "
    "articles, and asked what kind of thing many of them describe"
)

RECIPES = (
    Recipe(
        "sentiment", ("sst2",), "sst2", "<prompt:20>Review: {text}\nSentiment:",
        {"negative": " negative", "positive": " positive"}, 500,
        "Is an English sentence of a film review positive or negative?",
        "Stanford Sentiment Treebank, GLUE form; for research",
    ),
    Recipe(
        "nli", ("snli", "mnli"), "snli", "<prompt:20>Premise: {premise}\nHypothesis: {hypothesis}\nAnswer:",
        {"entailment": " yes", "neutral": " maybe", "contradiction": " no"}, 900,
        "Does the premise entail the hypothesis, contradict it, or neither?",
        "SNLI: CC BY-SA 4.0; MultiNLI: OANC and the licences of its sources",
        tries=Tries(inits=("labels",)),
    ),
    Recipe(
        "topic", ("ag_news",), "ag_news", "<prompt:20>{text}\nTopic:",
        {"world": " world", "sports": " sports", "business": " business", "technology": " technology"}, 200,
        "Which of four topics is a news item about?",
        "AG's corpus of news articles; for research and other non-commercial use",
    ),
    Recipe(
        "question-type", ("trec",), "trec", "<prompt:20>Question: {text}\nAsks for:",
        {name: f" {name}" for name in ("abbreviation", "description", "entity", "human", "location", "number")}, 1000,
        "What kind of thing does a question ask for?",
        "TREC question classification (Li and Roth 2002); for research",
        tries=Tries(rates=(1.0, 0.3)), method=PREFIX,
    ),
    Recipe(
        "duplicate", ("qqp",), "qqp", "<prompt:20>Question 1: {question1}\nQuestion 2: {question2}\nDuplicate:",
        {"different": " no", "duplicate": " yes"}, 300,
        "Do two questions ask the same thing?",
        "Quora Question Pairs, a slice; Quora's terms, for research",
    ),
    Recipe(
        "subjectivity", ("subj",), "subj", "<prompt:20>Text: {text}\nThis is",
        {"objective": " fact", "subjective": " opinion"}, 500,
        "Does a sentence state a fact or an opinion?",
        "Subjectivity dataset v1.0 (Pang and Lee 2004); for research",
        tries=Tries(rates=(1.0, 0.3)), method=PREFIX,
    ),
    Recipe(
        "kind", (), "wikipedia", "<prompt:20>{text}\nKind:",
        {label: f" {label}" for label in NOUNS}, 500,
        "What kind of thing does a passage of an encyclopedia describe?",
        "Wikipedia, articles of 2015: CC BY-SA 3.0",
        KIND_CAUTION,
        tries=Tries(rates=(1.0, 0.3)), method=PREFIX,
    ),
    Recipe(
        "describe", ("e2e",), "e2e", "<prompt:20>{input}\nDescription:", None, 1200,
        "Facts of a restaurant, told in a sentence or two",
        "E2E data set (Novikova et al. 2017), a slice: CC BY-SA 4.0",
        "its sentences are fluent and often wrong about the facts",
        tries=Tries(rates=(1.0, 0.3, 3.0)), method=PREFIX, max_tokens=96,
    ),
)  # fmt: skip
