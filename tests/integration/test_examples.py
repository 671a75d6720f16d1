"""The examples: a data set that is what it says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LABELS = {"billing", "technical", "account", "shipping", "feedback"}


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines()]


def test_tickets_are_balanced_over_the_labels() -> None:
    assert Counter(row["label"] for row in rows("tickets.jsonl")) == dict.fromkeys(LABELS, 30)
    assert Counter(row["label"] for row in rows("tickets-test.jsonl")) == dict.fromkeys(LABELS, 10)


def test_no_ticket_stands_twice_or_in_both_files() -> None:
    texts = [row["text"].casefold() for name in ("tickets.jsonl", "tickets-test.jsonl") for row in rows(name)]
    assert len(set(texts)) == len(texts) == 200


def test_tickets_vary_in_length_and_have_two_fields() -> None:
    for name in ("tickets.jsonl", "tickets-test.jsonl"):
        lengths = [len(row["text"].split()) for row in rows(name)]
        assert min(lengths) >= 5
        assert max(lengths) >= 2 * min(lengths)
        assert all(set(row) == {"text", "label"} for row in rows(name))
