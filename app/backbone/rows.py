"""Rows: what one input of one task looks like to the backbone, as plain integers.

A row's `ids` mix text tokens (0 and up) with virtual tokens: `-1 - j` stands for vector j of the row's prompt. That
keeps a row picklable and lets a slot stand anywhere. `prefix` counts the leading ids that are the same for every input
of the prompt (its leading slot and the begin token next to it): their keys and values are computed once and reused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from app.backbone.template import Slot, Template
from app.backbone.tokenizer import BackboneTokenizer
from app.errors import ContextTooLong

Bos = Literal["after_prompt", "first", "none"]


@dataclass(frozen=True)
class Row:
    """One encoded input. Every limit counts `total`, virtual tokens included: this property is the only such sum."""

    ids: tuple[int, ...]
    prefix: int = 0

    @property
    def virtual_tokens(self) -> int:
        return sum(1 for index in self.ids if index < 0)

    @property
    def text_tokens(self) -> int:
        return len(self.ids) - self.virtual_tokens

    @property
    def total(self) -> int:
        return len(self.ids)


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
    return (*tokenizer.encode_continuation(separator + text), *tokenizer.eos_ids[:1])


def _encode(tokenizer: BackboneTokenizer, template: Template, bos: Bos, fields: Mapping[str, str]) -> Row:
    bos_id = tokenizer.bos_id if bos != "none" else None
    ids: list[int] = [bos_id] if bos == "first" and bos_id is not None else []
    pending = bos_id if bos == "after_prompt" else None
    prefix = len(ids)
    for segment in template.segments:
        if isinstance(segment, Slot):
            leading = prefix == len(ids)
            ids += [-1 - j for j in range(segment.start, segment.start + segment.size)]
            prefix = len(ids) if leading else prefix
            continue
        text = tokenizer.encode_segment(template.render(segment, fields))
        if pending is not None and text[:1] != [pending]:  # an author who wrote it himself does not get it twice
            prefix += prefix == len(ids) > 0
            ids.append(pending)
        pending = None
        ids += text
    if pending is not None:
        ids.append(pending)
    return Row(tuple(ids), prefix if any(index < 0 for index in ids[:prefix]) else 0)


def _cut(tokenizer: BackboneTokenizer, text: str, tokens: int) -> str:
    """`text` without its last `tokens` tokens, and at least one character shorter."""
    ids = tokenizer.encode_text(text)
    kept = tokenizer.decode(ids[: max(0, len(ids) - tokens)])
    return kept if len(kept) < len(text) and text.startswith(kept) else text[: max(0, min(len(kept), len(text) - 1))]
