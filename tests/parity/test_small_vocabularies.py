"""Vocabularies that cannot spell every text, as BERT's and T5's: rows are what transformers makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from app.backbone import BackboneTokenizer, compile_verbalizer, encode_row, parse_template
from app.errors import InvalidVerbalizer

LETTERS = "abcdefghijklmnopqrstuvwxyz.,!?"
TEXTS = [
    "a good film",
    "price < 5 or {this}",
    "so good 😀",
    "中 was here",
    "naïve и",
    "😀😀",
    "a\nb\tc",
    "x [UNK] y <unk> z",
    "",
]


def wordpiece() -> PreTrainedTokenizerFast:
    """In the form of bert-base-uncased, with letters only."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*specials, *LETTERS, *(f"##{letter}" for letter in LETTERS), "good", "film", "it", "was"]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken(special, normalized=False) for special in specials])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name}_token": token for name, token in names.items()}
    )


def unigram() -> PreTrainedTokenizerFast:
    """In the form of T5's, with letters only."""
    specials = ["<pad>", "</s>", "<unk>"]
    pieces = [(token, 0.0) for token in specials] + [(letter, -3.0) for letter in f"▁{LETTERS}<>/"] + [("▁good", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens([AddedToken(special, normalized=False) for special in specials])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("text", TEXTS)
def test_row_of_a_word_piece_vocabulary_is_what_transformers_makes_of_the_text(text: str) -> None:
    theirs = wordpiece()
    ours = BackboneTokenizer(theirs, vocab_size=len(theirs), family="masked")
    template = parse_template("<prompt:3>{text} it was <mask>.")
    row = encode_row(ours, template, "after_prompt", {"text": text})
    plain = text.replace("[UNK]", "[ UNK ]")  # written out it is text, and no token
    wanted = theirs(f"{plain} it was [MASK].")["input_ids"]
    assert list(row.ids) == [-1, -2, -3, *wanted]


@pytest.mark.parametrize("text", TEXTS)
def test_row_of_a_unigram_vocabulary_is_what_transformers_makes_of_the_text(text: str) -> None:
    theirs = unigram()
    ours = BackboneTokenizer(theirs, vocab_size=len(theirs), family="seq2seq")
    row = encode_row(ours, parse_template("<prompt:3>{text}! so it was"), "none", {"text": text})
    known = [index for index in row.ids if index >= 0]
    if "<unk>" in text:  # written out it is text, piece by piece
        assert theirs.unk_token_id not in ours.encode_text("<unk>")
    else:
        assert known == theirs(f"{text}! so it was")["input_ids"]


def test_row_of_a_decoder_that_cannot_spell_everything_keeps_its_fixed_beginning() -> None:
    theirs = unigram()
    ours = BackboneTokenizer(theirs, vocab_size=len(theirs), family="causal")
    template = parse_template("<prompt:3>good: {text}")
    rows = [encode_row(ours, template, "none", {"text": text}) for text in ("film", "😀", "中")]
    assert len({row.ids[: row.prefix] for row in rows}) == 1
    assert rows[0].prefix > 3


@pytest.mark.parametrize("make", [wordpiece, unigram])
def test_row_that_is_cut_keeps_about_as_much_of_what_cannot_be_spelled(make: Callable[[], Any]) -> None:
    theirs = make()
    ours = BackboneTokenizer(theirs, vocab_size=len(theirs), family="masked" if make is wordpiece else "seq2seq")
    text = "😀 a " * 30
    whole = encode_row(ours, parse_template("{text}"), "none", {"text": text}).total
    row = encode_row(ours, parse_template("{text}"), "none", {"text": text}, max_tokens=whole - 2)
    assert whole - 8 <= row.total <= whole - 2


@pytest.mark.parametrize("make", [wordpiece, unigram])
@pytest.mark.parametrize("word", ["😀", "good😀", "\u200b"])
def test_label_word_that_cannot_be_spelled_is_refused_by_its_label(make: Callable[[], Any], word: str) -> None:
    theirs = make()
    family = "masked" if make is wordpiece else "seq2seq"
    ours = BackboneTokenizer(theirs, vocab_size=len(theirs), family=family)  # type: ignore[arg-type]
    with pytest.raises(InvalidVerbalizer) as caught:
        compile_verbalizer(ours, {"good": ["good"], "odd": [word]})
    assert caught.value.param == "verbalizer.odd"
