"""One answer from several members' answers: by vote, or by mean probability. Pure: answers in, an answer out.

Free text is voted on as it stands. Its mean is taken token by token while it is generated: `answer_coupled`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from app.engine.answers import Answer, Usage


def vote(answers: Sequence[Answer]) -> tuple[Answer, float]:
    """The answer most members gave, and the share of members who gave it.

    Among labels with as many votes the one with the higher mean probability wins, among texts the one given first.
    `scores` are the shares of the votes; `usage` is the sum.

    Raises:
        ValueError: no members, or members that differ in kind or labels.
    """
    labels = _labels(answers)
    votes = Counter(_said(answer) for answer in answers)
    if labels is None:
        best = max(votes, key=votes.__getitem__)  # the first of equals: a Counter keeps the order of arrival
        chosen = next(answer for answer in answers if _said(answer) == best)
        return replace(chosen, usage=total_usage(answers)), votes[best] / len(answers)
    means = _mean_scores(answers, labels)
    best = max(labels, key=lambda label: (votes[label], means[label]))
    shares = {label: votes[label] / len(answers) for label in labels}
    return _label_answer(answers, best, shares), shares[best]


def mean(answers: Sequence[Answer]) -> tuple[Answer, float]:
    """The label of the highest mean probability, and the share of members whose own best label it is.

    Raises:
        ValueError: no members, members whose labels differ, or free text.
    """
    labels = _labels(answers)
    if labels is None:
        raise ValueError("texts have no mean; generate them together with `answer_coupled`")
    means = _mean_scores(answers, labels)
    best = max(labels, key=means.__getitem__)
    agreement = sum(answer.label == best for answer in answers) / len(answers)
    logs = {label: math.log(p) if p > 0 else -math.inf for label, p in means.items()}
    return replace(_label_answer(answers, best, means), log_scores=logs), agreement


def total_usage(answers: Sequence[Answer]) -> Usage:
    """What all members took together."""
    return Usage(
        prompt_tokens=sum(answer.usage.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.usage.completion_tokens for answer in answers),
        virtual_tokens=sum(answer.usage.virtual_tokens for answer in answers),
    )


def _said(answer: Answer) -> str:
    return answer.label if answer.label is not None else answer.text.strip()


def _labels(answers: Sequence[Answer]) -> list[str] | None:
    """The members' labels in the first one's order; None for free text."""
    if not answers:
        raise ValueError("an ensemble has members")
    kinds = {None if answer.scores is None else frozenset(answer.scores) for answer in answers}
    if len(kinds) > 1:
        raise ValueError("members of an ensemble have the same labels, or none")
    return None if answers[0].scores is None else list(answers[0].scores)


def _mean_scores(answers: Sequence[Answer], labels: Sequence[str]) -> dict[str, float]:
    return {label: math.fsum((a.scores or {})[label] for a in answers) / len(answers) for label in labels}


def _label_answer(answers: Sequence[Answer], label: str, scores: dict[str, float]) -> Answer:
    return Answer(label, "label", total_usage(answers), label=label, scores=scores)
