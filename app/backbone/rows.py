"""Rows: what one input of one task looks like to the backbone, as plain integers.

A row's `ids` mix text tokens (0 and up) with virtual tokens: `-1 - j` stands for vector j of the row's prompt. That
keeps a row picklable and lets a slot stand anywhere. `prefix` counts the leading ids that inputs of the task have in
common (its leading slot, the begin token next to it, the template's own words up to the first field): their keys and
values are computed once and reused.

Rows of an encoder-decoder are what its encoder reads; rows of a masked model hold one mask token, where the answer
would stand. Both are framed as the tokenizer frames a text, and nothing of them can be reused: all tokens see all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Literal

from app.backbone.template import Field, Slot, Template
from app.backbone.template import Literal as Words
from app.backbone.tokenizer import BackboneTokenizer, Piece
from app.errors import ContextTooLong, InvalidTemplate

Bos = Literal["after_prompt", "first", "none"]

NEUTRAL_MASK = "<mask>"
"""How templates may write the mask token of any masked backbone."""


_BEGINNINGS = ("a", "The", " the", "7", ".", "'s", "\n", "\t", "-", "(", "é", "и", "中", "😀")
"""How texts may begin, as tokenizers tell texts apart: letters, figures, marks, white space, other scripts."""


@dataclass(frozen=True)
class Row:
    """One encoded input. Every limit counts `total`, virtual tokens included: this property is the only such sum.
    `decoder` counts the virtual tokens that an encoder-decoder's prompt has on the decoder's side."""

    ids: tuple[int, ...]
    prefix: int = 0
    decoder: int = 0

    @property
    def virtual_tokens(self) -> int:
        return sum(1 for index in self.ids if index < 0) + self.decoder

    @property
    def text_tokens(self) -> int:
        return self.total - self.virtual_tokens

    @property
    def total(self) -> int:
        return len(self.ids) + self.decoder


def default_bos(tokenizer: BackboneTokenizer) -> Bos:
    """PEFT's order, prompt then BOS then text, if the tokenizer begins texts with BOS of its own accord."""
    return "after_prompt" if tokenizer.adds_bos else "none"


def encode_row(
    tokenizer: BackboneTokenizer,
    template: Template,
    bos: Bos,
    fields: Mapping[str, str],
    *,
    max_tokens: int | None = None,
) -> Row:
    """Encode one input.

    `bos`: `after_prompt` puts the begin token before the first text, `first` before everything, `none` nowhere.
    `max_tokens`: the longest field is cut from its end until the row fits (training); None never cuts (serving).
    Raises InvalidRequest for fields that are missing or unknown and for text that is not valid Unicode, ContextTooLong
    if the template alone exceeds `max_tokens`.
    """
    template.check_input(fields)
    row = _encode(tokenizer, template, bos, fields)
    values = dict(fields)
    while max_tokens is not None and row.total > max_tokens:
        longest = max(values, key=lambda name: len(values[name]))
        kept = _cut(tokenizer, values[longest], row.total - max_tokens)
        if not values[longest]:
            raise ContextTooLong(f"the template alone takes {row.total} of {max_tokens} tokens", param="template")
        values[longest] = kept
        row = _encode(tokenizer, template, bos, values)
    return row


def encode_answer(tokenizer: BackboneTokenizer, template: Template, text: str) -> tuple[int, ...]:
    """Ids of a free-text answer as it goes on after the row: separator, text, end token."""
    separator = "" if text[:1].isspace() else template.separator
    return (*tokenizer.encode_answer(separator + text), *tokenizer.eos_ids[:1])


def check_mask(tokenizer: BackboneTokenizer, template: Template) -> None:
    """Raise InvalidTemplate unless a masked backbone's template holds its one mask; users' text cannot hold any."""
    if tokenizer.family != "masked":
        return
    found = sum(_masks(tokenizer, part) for part in template.literals)
    if found != 1:
        raise InvalidTemplate(
            f"a masked backbone reads its answer at one `{NEUTRAL_MASK}` in the template, not at {found}",
            param="template",
        )


def _masks(tokenizer: BackboneTokenizer, literal: str) -> int:
    return tokenizer.encode_segment((_author(tokenizer, literal),)).count(tokenizer.mask_id or 0)


def _author(tokenizer: BackboneTokenizer, literal: str) -> Piece:
    """Text of the template's author, with this backbone's own mask token for the neutral one."""
    if tokenizer.family == "masked" and tokenizer.mask_token is not None:
        literal = literal.replace(NEUTRAL_MASK, tokenizer.mask_token)
    return Piece(literal, author=True)


def _encode(tokenizer: BackboneTokenizer, template: Template, bos: Bos, fields: Mapping[str, str]) -> Row:
    begin = list(tokenizer.begin_ids) if bos != "none" else []
    ids: list[int] = list(begin) if bos == "first" else []
    pending = begin if bos == "after_prompt" else []
    prefix = len(ids)
    for segment in template.segments:
        if isinstance(segment, Slot):
            leading = prefix == len(ids)
            ids += [-1 - j for j in range(segment.start, segment.start + segment.size)]
            prefix = len(ids) if leading else prefix
            continue
        pieces = template.render(segment, fields)
        text = tokenizer.encode_segment([_author(tokenizer, p.text) if p.author else p for p in pieces])
        begun, leading = len(ids), prefix == len(ids)
        if pending and text[: len(pending)] != pending:  # an author who wrote it himself does not get it twice
            ids += pending
        pending = []
        if leading and tokenizer.family == "causal":
            fixed = _fixed_ids(tokenizer, segment)
            prefix += len(ids) - begun + (len(fixed) if text[: len(fixed)] == fixed else 0)
        ids += text
    ids += pending
    end = list(tokenizer.end_ids)
    if end and ids[-len(end) :] != end:
        ids += end
    reusable = tokenizer.family == "causal" and any(index < 0 for index in ids[:prefix])
    return Row(tuple(ids), prefix if reusable else 0)


@lru_cache(maxsize=1024)
def _fixed_ids(tokenizer: BackboneTokenizer, segment: tuple[Words | Field, ...]) -> list[int]:
    """What a segment begins with, whatever its fields hold: the ids of its leading words, less the last ones where what
    follows may be merged into them. Some text may do so all the same: compare before use."""
    leading = takewhile(lambda part: isinstance(part, Words), segment)
    words = [_author(tokenizer, part.text) for part in leading if isinstance(part, Words)]
    fixed = tokenizer.encode_segment(words) if words else []
    for text in _BEGINNINGS if len(words) < len(segment) else ():
        ids = tokenizer.encode_segment([*words, Piece(text, author=False)])
        fixed = [index for index, _ in takewhile(lambda pair: pair[0] == pair[1], zip(fixed, ids, strict=False))]
    return fixed


def _cut(tokenizer: BackboneTokenizer, text: str, tokens: int) -> str:
    """`text` without its last `tokens` tokens, and at least one character shorter."""
    ids = tokenizer.encode_text(text)
    left = max(0, len(ids) - tokens)
    kept = tokenizer.decode(ids[:left])
    if len(kept) < len(text) and text.startswith(kept):
        return kept
    return text[: max(0, min(len(text) - 1, len(text) * left // max(1, len(ids))))]  # decoded otherwise than written
