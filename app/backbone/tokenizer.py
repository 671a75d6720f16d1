"""The backbone's tokenizer, safe for text of strangers.

A segment of a template is tokenised as *one string*, as users of PEFT train. Special tokens that the template's author
wrote keep their meaning; the same characters inside user text never do. To that end the ordinary tokenizer's result is
accepted only if every reserved id in it stands exactly where the author wrote it; otherwise the text is cut at the
author's special tokens and each part goes through a twin of the tokenizer that knows no added tokens at all.

What a vocabulary cannot spell becomes its token for the unknown, as everywhere; those characters written out do not.

Both tokenizers are built once and never changed afterwards, so they may be used from several threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from app.errors import InvalidRequest, UnsupportedBackbone
from prompt_store.models import Family


@dataclass(frozen=True)
class Piece:
    """Part of a segment: `author` text may hold special tokens, user text may not."""

    text: str
    author: bool


class BackboneTokenizer:
    """Text to ids and back. `reserved` are the ids of added tokens, those of plain white space excepted.

    `begin_ids` and `end_ids` are what a whole text is framed with: of a decoder the begin token, where it has one; of
    other families what the tokenizer itself puts around a text ([CLS] … [SEP], … </s>).
    """

    def __init__(
        self, tokenizer: Any, *, vocab_size: int, eos_ids: Sequence[int] = (), family: Family = "causal"
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedBackbone("this model has no `tokenizer.json`; a fast tokenizer is needed")
        self._full = _without_length_rules(backend)
        self._plain = _around_the_model_of(self._full)
        self.vocab_size = vocab_size
        added = {token.content: index for index, token in self._full.get_added_tokens_decoder().items()}
        self._specials = {content: index for content, index in added.items() if content.strip()}
        self.reserved = frozenset(self._specials.values())
        self.bos_id: int | None = tokenizer.bos_token_id
        own_eos = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        self.eos_ids = tuple(dict.fromkeys((*eos_ids, *own_eos)))
        self.family = family
        self.mask_id: int | None = tokenizer.mask_token_id
        self.mask_token: str | None = tokenizer.mask_token
        self.unk_id = _unknown(tokenizer)
        """The token of what cannot be spelled, where it has no other meaning."""
        probe = self._full.encode("a").ids
        self.begin_ids: tuple[int, ...] = () if self.bos_id is None else (self.bos_id,)
        self.end_ids: tuple[int, ...] = ()
        self.adds_bos = self.bos_id is not None and bool(probe) and probe[0] == self.bos_id
        if family != "causal":
            self.begin_ids, self.end_ids = _frame(probe, self._full.encode("a", add_special_tokens=False).ids)
            self.adds_bos = bool(self.begin_ids)

    def canonical_json(self) -> str:
        """The tokenizer's definition, for the fingerprint: what turns text into ids, nothing else."""
        return json.dumps(json.loads(self._full.to_str()), sort_keys=True, ensure_ascii=False)

    def encode_text(self, text: str) -> list[int]:
        """Ids of user text: never a reserved id, but for what cannot be spelled."""
        return self.encode_segment((Piece(text, author=False),))

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of `text` as it would go on after other text, so that no begin-of-text space is invented."""
        anchor = self._plain.encode(":", add_special_tokens=False).ids
        joined = self.encode_text(":" + text)
        return joined[len(anchor) :] if joined[: len(anchor)] == anchor else self.encode_text(text)

    def encode_answer(self, text: str) -> list[int]:
        """Ids of what a row is answered with: it goes on after the row, or is a text of its own where a decoder of its
        own writes it."""
        return self.encode_text(text.lstrip()) if self.family == "seq2seq" else self.encode_continuation(text)

    def encode_segment(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of one segment. Raises InvalidRequest for text that is not valid Unicode."""
        text = "".join(piece.text for piece in pieces)
        try:
            encoding = self._full.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # which of them depends on the release of tokenizers
            raise InvalidRequest("the text holds a lone surrogate, which is not valid Unicode") from None
        if not self.reserved.intersection(encoding.ids):
            return list(encoding.ids)
        written = list(self._written_specials(pieces))
        found = [
            (index, span)
            for index, span in zip(encoding.ids, encoding.offsets, strict=True)
            if index in self.reserved and not self._unspelled(index, text, span)
        ]
        if _same_places(written, found):
            return list(encoding.ids)
        return self._encode_apart(text, written)

    def _unspelled(self, index: int, text: str, span: tuple[int, int]) -> bool:
        """Whether this is the unknown token for characters that are not its own name."""
        return index == self.unk_id and text[slice(*span)].strip() not in self._specials

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens left out."""
        return str(self._full.decode(list(ids), skip_special_tokens=True))

    def _written_specials(self, pieces: Sequence[Piece]) -> Iterable[tuple[int, tuple[int, int]]]:
        """(id, character span) of each special token the author wrote, in order."""
        start = 0
        for piece in pieces:
            at = 0
            while piece.author and at < len(piece.text):
                content = max((c for c in self._specials if piece.text.startswith(c, at)), key=len, default="")
                if content:
                    yield self._specials[content], (start + at, start + at + len(content))
                at += len(content) or 1
            start += len(piece.text)

    def _encode_apart(self, text: str, written: Sequence[tuple[int, tuple[int, int]]]) -> list[int]:
        ids: list[int] = []
        at = 0
        for index, (start, stop) in written:
            ids += self._encode_plain(text[at:start])
            ids.append(index)
            at = stop
        return ids + self._encode_plain(text[at:])

    def _encode_plain(self, text: str) -> list[int]:
        """Without added tokens. Some vocabularies hold a special token as an ordinary piece too: cut through it."""
        if not text:
            return []
        encoding = self._plain.encode(text, add_special_tokens=False)
        for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if index in self.reserved and not self._unspelled(index, text, (start, stop)):
                if stop - start < 2:
                    raise InvalidRequest(f"the character U+{ord(text[start]):04X} cannot be used with this backbone")
                middle = (start + stop) // 2
                return self._encode_plain(text[:middle]) + self._encode_plain(text[middle:])
        return list(encoding.ids)


def _unknown(tokenizer: Any) -> int | None:
    unknown: int | None = tokenizer.unk_token_id
    others = ("bos", "eos", "pad", "mask", "cls", "sep")
    meant = {getattr(tokenizer, f"{name}_token_id", None) for name in others}
    return None if unknown in meant else unknown


def _frame(whole: Sequence[int], text: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and behind the ids of a text."""
    for start in range(len(whole) - len(text) + 1):
        if list(whole[start : start + len(text)]) == list(text):
            return tuple(whole[:start]), tuple(whole[start + len(text) :])
    return (), ()


def _without_length_rules(full: Tokenizer) -> Tokenizer:
    """The same tokenizer without the truncation and padding that its file may carry."""
    made = _around_the_model_of(full)
    if full.post_processor is not None:
        made.post_processor = full.post_processor
    for _, token in sorted(full.get_added_tokens_decoder().items()):
        (made.add_special_tokens if token.special else made.add_tokens)([token])  # ids are given in this order
    return made


def _around_the_model_of(full: Tokenizer) -> Tokenizer:
    """A twin that knows no added tokens: a vocabulary of 150,000 words takes its 30 MB only once."""
    plain = Tokenizer(full.model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (of_full := getattr(full, part)) is not None:
            setattr(plain, part, of_full)
    return plain


def _same_places(written: Sequence[tuple[int, tuple[int, int]]], found: Sequence[tuple[int, tuple[int, int]]]) -> bool:
    """Whether each reserved id covers exactly one special token of the author (it may swallow spaces around it)."""
    if len(written) != len(found):
        return False
    return all(
        w_id == f_id and f_span[0] <= w_span[0] and w_span[1] <= f_span[1]
        for (w_id, w_span), (f_id, f_span) in zip(written, found, strict=True)
    )
