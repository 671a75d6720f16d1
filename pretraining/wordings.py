"""The wordings of the tasks that pretraining shows: one row asked in many ways, and a word for each label.

Many, so that the model learns the task and not a phrase, and so that a learned prompt finds more than one way in; the
plainest is drawn most. A wording whose words do not cover a label is not used for rows of that label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pretraining.documents import Document, asked

Words = Mapping[str, str]


@dataclass(frozen=True)
class Wording:
    """`before` and `after` hold `{field}`s; between them stands the label's word, which begins with a space.

    `share`: how often it is drawn, beside the others of its task.
    """

    before: str
    words: Words
    after: str = ""
    share: float = 1.0

    def document(self, fields: Mapping[str, str], label: str) -> Document:
        return asked(self.before.format_map(fields), self.words[label], self.after.format_map(fields))

    def covers(self, label: str) -> bool:
        return label in self.words


def _three(entailment: str, neutral: str, contradiction: str) -> Words:
    return {"entailment": f" {entailment}", "neutral": f" {neutral}", "contradiction": f" {contradiction}"}


def _follows(yes: str, no: str) -> Words:
    """Two ways: it follows, or it does not."""
    return {"entailment": f" {yes}", "neutral": f" {no}", "contradiction": f" {no}", "not_entailment": f" {no}"}


def _conflicts(yes: str, no: str) -> Words:
    return {"contradiction": f" {yes}", "neutral": f" {no}", "entailment": f" {no}"}


def _tone(positive: str, negative: str) -> Words:
    return {"positive": f" {positive}", "negative": f" {negative}"}


def _same(yes: str, no: str) -> Words:
    return {"duplicate": f" {yes}", "different": f" {no}"}


_TOPICS: Words = {name: f" {name}" for name in ("world", "sports", "business", "technology")}
_TOPICS_CAPITAL: Words = {name: f" {name.capitalize()}" for name in ("world", "sports", "business", "technology")}
_PAIR = "Premise: {premise}\nHypothesis: {hypothesis}\n"

NLI = (
    Wording(_PAIR + "Answer:", _three("yes", "maybe", "no"), share=5),
    Wording(_PAIR + "Label:", _three("entailment", "neutral", "contradiction")),
    Wording(_PAIR + "Relation:", _three("entailment", "neutral", "contradiction"), "."),
    Wording("{premise}\n{hypothesis}\nTrue, false or neither?", _three("true", "neither", "false")),
    Wording("{premise}\nQuestion: {hypothesis} True, False, or Neither?\nAnswer:", _three("True", "Neither", "False")),
    Wording("{premise}\nIs it so that: {hypothesis}\nYes, no or maybe:", _three("yes", "maybe", "no")),
    Wording("Text: {premise}\nClaim: {hypothesis}\nThe claim is", _three("true", "unclear", "false"), "."),
    Wording("Claim: {hypothesis}\nText: {premise}\nThe claim is", _three("true", "unclear", "false"), "."),
    Wording("Sentence 1: {premise}\nSentence 2: {hypothesis}\nJudgement:", _three("follows", "possible", "conflicts")),
    Wording("Given: {premise}\nThen: {hypothesis}\nThis is", _three("certain", "possible", "impossible"), "."),
    Wording("{premise} Therefore, {hypothesis}\nCorrect?", _three("Yes", "Maybe", "No")),
    Wording("Scene: {premise}\nStatement: {hypothesis}\nThe statement is", _three("right", "open", "wrong"), "."),
    Wording("Text: {premise}\nDoes this follow: {hypothesis}\nFollows:", _follows("yes", "no")),
    Wording("{premise}\n{hypothesis}\nEntailed:", _follows("yes", "no")),
    Wording("1. {premise}\n2. {hypothesis}\nDo they conflict?", _conflicts("yes", "no")),
)
"""Premise and hypothesis: `entailment`, `neutral`, `contradiction`; or `entailment`, `not_entailment`."""

SENTIMENT = (
    Wording("Review: {text}\nSentiment:", _tone("positive", "negative"), share=3),
    Wording("{text} It was", _tone("great", "terrible"), "."),
    Wording("{text}\nAll in all, it was", _tone("good", "bad"), "."),
    Wording("Text: {text}\nTone:", _tone("positive", "negative")),
    Wording("{text}\nPositive or negative?", _tone("positive", "negative")),
    Wording("Review: {text}\nStars:", _tone("five", "one")),
    Wording("{text}\nDid they like it?", _tone("yes", "no")),
    Wording("Movie review: {text}\nRecommended:", _tone("yes", "no")),
    Wording("Comment: {text}\nThe writer is", _tone("happy", "unhappy"), "."),
    Wording("{text}\nLabel:", _tone("positive", "negative")),
    Wording("A critic said: {text}\nThe film is", _tone("good", "bad"), "."),
)

TOPIC = (
    Wording("{text}\nTopic:", _TOPICS, share=3),
    Wording("News: {text}\nSection:", _TOPICS_CAPITAL),
    Wording("Article: {text}\nCategory:", _TOPICS),
    Wording("{text}\nThis is about", _TOPICS, "."),
    Wording("World, sports, business or technology?\n{text}\nAnswer:", _TOPICS),
    Wording("{text}\nLabel:", _TOPICS),
    Wording("Headline: {text}\nDesk:", _TOPICS_CAPITAL),
)

DUPLICATE = (
    Wording("Question 1: {question1}\nQuestion 2: {question2}\nDuplicate:", _same("yes", "no"), share=3),
    Wording("{question1}\n{question2}\nSame question?", _same("yes", "no")),
    Wording("Q1: {question1}\nQ2: {question2}\nThe questions are", _same("the same", "different"), "."),
    Wording("First: {question1}\nSecond: {question2}\nSame meaning:", _same("true", "false")),
    Wording("{question1}\n{question2}\nLabel:", _same("duplicate", "different")),
    Wording("Do these ask the same thing?\n{question1}\n{question2}\nAnswer:", _same("yes", "no")),
    Wording("Question: {question2}\nEarlier question: {question1}\nAsked before:", _same("yes", "no")),
)

WORDINGS: dict[str, tuple[Wording, ...]] = {
    "snli": NLI, "mnli": NLI, "cf_nli": NLI, "joci": NLI, "mpe": NLI, "rte": NLI,
    "sst2": SENTIMENT, "imdb": SENTIMENT, "ag_news": TOPIC, "qqp": DUPLICATE,
}  # fmt: skip
