"""A starter's figures on test rows, asked through the API: accuracy of labels, ROUGE-L and BLEU of texts.

The same words without vectors are asked the same rows, as a version of their own.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

from app.backbone import parse_template
from app.compare.scores import score
from benchmarks.running import checked
from benchmarks.starters.recipes import Recipe
from benchmarks.starters.rows import Row, Split, inputs_of, references_of
from benchmarks.statistics import wilson
from prompt_store import Evaluation

ZERO_SHOT = "zero_shot"  # as a trainer names it on dev rows
LABEL_ROWS, TEXT_ROWS = 200, 32  # in one request
_FACT = re.compile(r"\w\[([^\]]+)\]")
MANY = 8  # labels from which the card tells each one's hits


def evaluate(client: httpx.Client, recipe: Recipe, split: Split) -> Evaluation:
    """The test rows' evaluation, as it stands on the card."""
    found, outputs = _score(client, recipe, recipe.task, split)
    bare, _ = _score(client, recipe, f"{recipe.task}@{publish_words(client, recipe)}", split)
    details = {"data": recipe.test, **found.details, **split.details}
    failed = sum(bool(output.get("error")) for output in outputs)
    if failed:
        details["errors"] = failed
    if recipe.caution:
        details["caution"] = recipe.caution
    baselines = {**found.baselines, ZERO_SHOT: bare.score}
    return found.model_copy(update={"details": details, "baselines": baselines})


def publish_words(client: httpx.Client, recipe: Recipe) -> int:
    """The recipe's words without vectors, as the task's next version, which no alias points to; its number."""
    words = None if recipe.words is None else {label: [word] for label, word in recipe.words.items()}
    body = {"template": parse_template(recipe.template).without_slots().source, "verbalizer": words, "alias": None}
    number: int = checked(client.post(f"/v1/tasks/{recipe.task}/versions", json=body))["version"]
    return number


def _score(client: httpx.Client, recipe: Recipe, of: str, split: Split) -> tuple[Evaluation, list[dict[str, Any]]]:
    """What a version says of the test rows, scored and as it was said."""
    size = TEXT_ROWS if recipe.words is None else LABEL_ROWS
    outputs = ask(client, of, split.test, size=size)
    return (of_texts if recipe.words is None else of_labels)(split.test, outputs), outputs


def ask(client: httpx.Client, task: str, rows: Sequence[Row], *, size: int) -> list[dict[str, Any]]:
    """Answers in the rows' order. A row that the service could not answer has its `error`."""
    outputs: list[dict[str, Any]] = []
    for start in range(0, len(rows), size):
        requests = [{"task": task, "input": inputs_of(row)} for row in rows[start : start + size]]
        outputs += checked(client.post("/v1/generate", json={"requests": requests}))["outputs"]
    return outputs


def of_labels(rows: Sequence[Row], outputs: Sequence[dict[str, Any]]) -> Evaluation:
    """Accuracy beside always answering the most common label; a row without an answer is wrong."""
    expected = Counter(row["label"] for row in rows)
    right = [output["label"] == row["label"] for row, output in zip(rows, outputs, strict=True)]
    hits = Counter(row["label"] for row, hit in zip(rows, right, strict=True) if hit)
    details: dict[str, Any] = {"hits": sum(right)}
    if len(expected) > MANY:
        details["by_label"] = {label: [hits[label], count] for label, count in sorted(expected.items())}
    return Evaluation(
        metric="accuracy",
        score=sum(right) / len(rows),
        n=len(rows),
        interval=wilson(sum(right), len(rows)),
        split="test",
        baselines={"majority": max(expected.values()) / len(rows)},
        at=time.time(),
        details=details,
    )


def of_texts(rows: Sequence[Row], outputs: Sequence[dict[str, Any]]) -> Evaluation:
    """ROUGE-L and BLEU against all references, beside giving the input back; a row without an answer is empty."""
    references = [references_of(row) for row in rows]
    given = [output.get("text") or "" for output in outputs]
    echoed = [" ".join(inputs_of(row).values()) for row in rows]
    found, echo = score("rouge_l", references, given), score("rouge_l", references, echoed)
    details = {"bleu": found["bleu"].describe(), "bleu_of_input": echo["bleu"].value}
    facts = [_facts(" ".join(inputs_of(row).values())) for row in rows]
    if any(facts):
        details["facts_told"] = _told(facts, [[text] for text in given])
        details["facts_told_by_people"] = _told(facts, references)
    return Evaluation(
        metric="rouge_l",
        score=found["rouge_l"].value,
        n=len(rows),
        interval=found["rouge_l"].interval,
        split="test",
        baselines={"input": echo["rouge_l"].value},
        at=time.time(),
        details=details,
    )


def _facts(text: str) -> list[str]:
    """What stands in brackets behind a name, as E2E writes facts; not yes and no, which no text repeats."""
    return [value.lower() for value in _FACT.findall(text) if value not in ("yes", "no")]


def _told(facts: Sequence[Sequence[str]], texts: Sequence[Sequence[str]]) -> float:
    """The share of facts whose own words stand in a text; of several texts their mean."""
    shares = [
        sum(fact in text.lower() for text in of) / len(of) for row, of in zip(facts, texts, strict=True) for fact in row
    ]
    return sum(shares) / len(shares)
