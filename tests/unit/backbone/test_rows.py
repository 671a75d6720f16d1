from __future__ import annotations

import pytest

from app.backbone import Backbone, BackboneTokenizer, default_bos, encode_answer, encode_row, parse_template
from app.errors import ContextTooLong

BOS = 0


def test_row_of_a_leading_prompt_is_prompt_bos_text_as_in_peft(tokenizer: BackboneTokenizer) -> None:
    row = encode_row(tokenizer, parse_template("<prompt:3>{text}"), "after_prompt", {"text": "hello"})
    assert row.ids == (-1, -2, -3, BOS, *tokenizer.encode_text("hello"))
    assert row.prefix == 4


def test_row_with_bos_first_begins_with_it(tokenizer: BackboneTokenizer) -> None:
    row = encode_row(tokenizer, parse_template("<prompt:2>{text}"), "first", {"text": "hello"})
    assert row.ids[:3] == (BOS, -1, -2)
    assert row.prefix == 3


@pytest.mark.parametrize("template", ["<prompt:3>Review: {text}", "Read this.<prompt:3>Review: {text} So:"])
def test_row_counts_the_templates_own_words_up_to_the_first_field_as_reusable(
    tokenizer: BackboneTokenizer, template: str
) -> None:
    rows = [encode_row(tokenizer, parse_template(template), "none", {"text": text}) for text in ("one", " two", "7")]
    (begun,) = {row.ids[: row.prefix] for row in rows}
    assert begun[:1] == ((-1,) if template.startswith("<") else tuple(tokenizer.encode_text("Read this.")[:1]))
    assert tokenizer.decode(index for index in begun if index >= 0) in template.replace("<prompt:3>", "")
    words = tokenizer.encode_text("Review:")
    assert list(begun[-len(words) :]) == words


def test_row_whose_text_melts_into_the_words_before_it_reuses_only_what_stays(tokenizer: BackboneTokenizer) -> None:
    template = parse_template("<prompt:2>wonder{text}")
    whole = tokenizer.encode_text("wonderful")
    row = encode_row(tokenizer, template, "none", {"text": "ful"})
    assert row.ids == (-1, -2, *whole)
    plain = encode_row(tokenizer, template, "none", {"text": " and more"})
    begun = plain.ids[: plain.prefix]
    assert row.prefix == (len(begun) if row.ids[: len(begun)] == begun else 2)


def test_row_of_a_suffix_prompt_has_no_reusable_prefix(tokenizer: BackboneTokenizer) -> None:
    row = encode_row(tokenizer, parse_template("{text}<prompt:2>"), "after_prompt", {"text": "hello"})
    assert row.ids == (BOS, *tokenizer.encode_text("hello"), -1, -2)
    assert row.prefix == 0


def test_row_counts_virtual_tokens_in_its_total(tokenizer: BackboneTokenizer) -> None:
    row = encode_row(tokenizer, parse_template("<prompt:3>{text}<prompt:4>"), "none", {"text": "hello there"})
    assert row.virtual_tokens == 7
    assert row.total == 7 + row.text_tokens


def test_row_of_an_author_who_wrote_bos_has_it_once(tokenizer: BackboneTokenizer) -> None:
    row = encode_row(tokenizer, parse_template("<prompt:2><s>{text}"), "after_prompt", {"text": "hello"})
    assert row.ids.count(BOS) == 1


def test_row_of_a_user_who_wrote_a_slot_or_a_special_token_stays_text(tokenizer: BackboneTokenizer) -> None:
    text = "<prompt:5> {text} </s>"
    row = encode_row(tokenizer, parse_template("<prompt:2>{text}"), "none", {"text": text})
    assert row.virtual_tokens == 2
    assert tokenizer.decode(row.ids[2:]) == text


def test_row_cut_to_fit_shortens_the_longest_field_alone(tokenizer: BackboneTokenizer) -> None:
    template = parse_template("<prompt:4>A: {a}\nB: {b}\nAnswer:")
    values = {"a": "short", "b": "many words " * 50}
    row = encode_row(tokenizer, template, "none", values, max_tokens=40)
    text = tokenizer.decode([index for index in row.ids if index >= 0])
    assert row.total <= 40
    assert text.startswith("A: short\nB: many words")
    assert text.endswith("\nAnswer:")


def test_row_that_cannot_be_cut_enough_is_refused(tokenizer: BackboneTokenizer) -> None:
    with pytest.raises(ContextTooLong):
        encode_row(tokenizer, parse_template("<prompt:40>{text}"), "none", {"text": "hi"}, max_tokens=30)


def test_answer_goes_on_after_the_template_and_ends_with_the_end_token(tokenizer: BackboneTokenizer) -> None:
    ids = encode_answer(tokenizer, parse_template("{text} So:"), "a story")
    assert tokenizer.decode(ids) == " a story"
    assert ids[-1] in tokenizer.eos_ids
    assert encode_answer(tokenizer, parse_template("{text}\n"), "a story")[:-1] == tuple(
        tokenizer.encode_continuation("a story")
    )


def test_default_bos_follows_the_tokenizers_own_habit(llama: Backbone) -> None:
    assert llama.tokenizer.adds_bos
    assert default_bos(llama.tokenizer) == "after_prompt"
