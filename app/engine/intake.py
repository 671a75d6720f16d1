"""From what callers ask to what the engine runs: rows are encoded, checked against the context, and those that begin
with the same text are put side by side. Pure, and run outside the event loop: tokenising is work."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from app.backbone import BackboneTokenizer, Decoding, encode_row
from app.backbone.families.masked_scoring import NO_TEXT
from app.backbone.kv import PrefixKV
from app.backbone.soft_prompt import decoder_tokens
from app.engine.answers import Ask
from app.engine.types import RowRequest, Sampling
from app.errors import CapabilityMissing, ChorusError, ContextTooLong, InvalidRequest

# Leading ids that must agree before rows are looked at as sharing text, and rows that may wait for one another.
_SAME_BEGINNING = 16
_MOST_SHARING = 16
COLDEST = 1e-5


def encode_asks(
    tokenizer: BackboneTokenizer, asks: Sequence[Ask], *, max_context: int
) -> list[RowRequest | ChorusError]:
    """Each ask as a row, or the error that it is: InvalidRequest, CapabilityMissing, ContextTooLong."""
    return [_encode_or_error(tokenizer, ask, max_context) for ask in asks]


def sharing(rows: Mapping[int, RowRequest]) -> list[tuple[list[int], int]]:
    """Numbers of rows to run side by side, with the leading ids they have in common; rows that share too little (less
    than half of the shortest one) stand alone, with 0, as do those whose beginning is kept with their prompt."""
    alike: dict[tuple[int, ...], list[int]] = {}
    groups: list[tuple[list[int], int]] = []
    for number, row in rows.items():
        beginning = row.row.ids[:_SAME_BEGINNING]
        if len(beginning) < _SAME_BEGINNING or min(beginning) < 0 or row.row.prefix:
            groups.append(([number], 0))
        else:
            alike.setdefault(beginning, []).append(number)
    for numbers in alike.values():
        for at in range(0, len(numbers), _MOST_SHARING):
            part = numbers[at : at + _MOST_SHARING]
            shared = common_text([rows[number] for number in part])
            if 2 * shared >= min(rows[number].row.total for number in part) and len(part) > 1:
                groups.append((part, shared))
            else:
                groups += [([number], 0) for number in part]
    return groups


def common_text(rows: Sequence[RowRequest]) -> int:
    """How many leading ids all rows have in common, up to the first virtual one; every row keeps its last id to
    itself, since what follows from it is asked. None where a row's beginning is kept with its prompt: those keys and
    values are computed whole, once, and lie elsewhere from then on."""
    if any(row.row.prefix for row in rows):
        return 0
    first, *others = (row.row.ids for row in rows)
    length = min(len(ids) for ids in (first, *others)) - 1 if others else 0
    for place in range(max(0, length)):
        if first[place] < 0 or any(ids[place] != first[place] for ids in others):
            return place
    return max(0, length)


def sampling_of(decoding: Decoding, seed: int | None, input: Mapping[str, str]) -> Sampling:
    """Without a seed, sampled answers draw one from the clock; greedy ones need none. Temperatures below `COLDEST` are
    greedy: logits over them would leave the numbers that there are."""
    temperature = decoding.temperature if decoding.temperature >= COLDEST else 0.0
    if seed is None:
        words = hashlib.sha256(repr(sorted(input.items())).encode("utf-8", "replace")).digest()
        seed = time.monotonic_ns() ^ int.from_bytes(words[:6], "big") if temperature > 0 else 0
    return Sampling(decoding.max_tokens, temperature, decoding.top_p, decoding.top_k, seed & (2**62 - 1))


def _encode_or_error(tokenizer: BackboneTokenizer, ask: Ask, max_context: int) -> RowRequest | ChorusError:
    prompt = ask.prompt
    if tokenizer.family == "masked" and prompt.verbalizer is None:
        return CapabilityMissing(NO_TEXT)
    try:
        row = encode_row(tokenizer, prompt.template, prompt.bos, ask.input)
        row = replace(row, decoder=decoder_tokens(prompt.learned))
    except ChorusError as error:
        return error
    given = prompt.learned.length if isinstance(prompt.learned, PrefixKV) else 0
    if row.total <= given:
        return InvalidRequest(
            "there is not one token to read: the input is empty and so is the template", param="input"
        )
    digest = prompt.digest if prompt.learned is not None else None
    sampling = None if prompt.verbalizer is not None else sampling_of(ask.decoding, ask.seed, ask.input)
    request = RowRequest(row, digest, sampling, prompt.verbalizer)
    if request.places <= max_context:
        return request
    kind = "new tokens" if sampling else "label tokens"
    return ContextTooLong(
        f"{row.text_tokens} text tokens, {row.virtual_tokens} virtual tokens and {request.answer_tokens} {kind} "
        f"exceed the context of {max_context}",
        param="input",
    )
