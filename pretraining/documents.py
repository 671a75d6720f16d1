"""A document: pieces of text, each of a kind that decides what its tokens weigh in the loss."""

from __future__ import annotations

from typing import NamedTuple

TEXT, TASK, ANSWER = 0, 1, 2
"""Kinds of tokens: running text, the text of a task, a task's answer."""


class Piece(NamedTuple):
    text: str
    kind: int


Document = tuple[Piece, ...]


def running_text(text: str) -> Document:
    return (Piece(text, TEXT),)


def asked(before: str, answer: str, after: str = "") -> Document:
    """A task's text with its answer. The answer begins with its space, as the tokenizer would cut it anyway.

    Raises ValueError where a cut before or after the answer would change how the text is tokenised.
    """
    if not before or before[-1].isspace() or not answer[:1].isspace() or answer[-1].isspace():
        raise ValueError(f"the answer {answer!r} after {before[-20:]!r} does not begin a word")
    if after and (after[0].isalnum() or after[0] == "'"):
        raise ValueError(f"the text {after!r} would go on the answer's last word")
    pieces = (Piece(before, TASK), Piece(answer, ANSWER))
    return (*pieces, Piece(after, TASK)) if after else pieces


def whole(document: Document) -> str:
    return "".join(piece.text for piece in document)
