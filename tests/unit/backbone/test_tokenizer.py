from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from app.backbone import BackboneTokenizer
from app.backbone.source import bundled_folder
from app.backbone.tokenizer import Piece, _around_the_model_of, _without_length_rules
from app.errors import InvalidRequest

SPECIALS = ("<s>", "</s>", "<pad>", "<unk>")


def test_encode_text_of_special_characters_gives_no_special_token(tokenizer: BackboneTokenizer) -> None:
    for special in SPECIALS:
        ids = tokenizer.encode_text(f"before {special} after")
        assert not tokenizer.reserved.intersection(ids)
        assert tokenizer.decode(ids) == f"before {special} after"


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from([*SPECIALS, "<", ">", "s", "/s", " ", "pad", "é", "🙂"]), max_size=12))
def test_encode_text_of_any_mixture_gives_no_special_token(tokenizer: BackboneTokenizer, parts: list[str]) -> None:
    assert not tokenizer.reserved.intersection(tokenizer.encode_text("".join(parts)))


def test_twin_around_the_same_model_is_the_file_without_added_tokens() -> None:
    full = Tokenizer.from_file(str(Path(bundled_folder()) / "tokenizer.json"))
    definition = json.loads(full.to_str()) | {"added_tokens": [], "post_processor": None}
    assert json.loads(_around_the_model_of(full).to_str()) == definition


def test_tokenizer_without_length_rules_is_the_file_without_them() -> None:
    full = Tokenizer.from_file(str(Path(bundled_folder()) / "tokenizer.json"))
    full.add_tokens([AddedToken("[plain]", lstrip=True, normalized=True)])
    full.add_special_tokens([AddedToken("<more>", single_word=True)])
    definition = json.loads(full.to_str())
    full.enable_truncation(4)
    full.enable_padding()
    assert json.loads(_without_length_rules(full).to_str()) == definition
    assert full.truncation is not None, "the one given stays as it is"


def test_encode_segment_keeps_the_authors_special_token_and_not_the_users(tokenizer: BackboneTokenizer) -> None:
    ids = tokenizer.encode_segment(
        [Piece("a</s>", author=True), Piece("b</s>c", author=False), Piece("<s>", author=True)]
    )
    assert [index for index in ids if index in tokenizer.reserved] == [1, 0]
    assert ids[-1] == 0


def test_encode_segment_across_author_and_user_text_makes_no_special_token(tokenizer: BackboneTokenizer) -> None:
    ids = tokenizer.encode_segment([Piece("x <", author=True), Piece("s>", author=False)])
    assert not tokenizer.reserved.intersection(ids)


def test_encode_segment_is_one_string_as_peft_users_train(tokenizer: BackboneTokenizer) -> None:
    pieces = [Piece("Review: ", author=True), Piece("great fun", author=False), Piece("\nSentiment:", author=True)]
    assert tokenizer.encode_segment(pieces) == tokenizer.encode_text("Review: great fun\nSentiment:")


def test_encode_text_of_a_lone_surrogate_is_refused(tokenizer: BackboneTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizer.encode_text("a \ud800 b")


def test_encode_continuation_goes_on_after_text(tokenizer: BackboneTokenizer) -> None:
    assert tokenizer.encode_text("It was" + " great") == tokenizer.encode_text(
        "It was"
    ) + tokenizer.encode_continuation(" great")


def make_unigram() -> BackboneTokenizer:
    """A vocabulary that holds `<s>` as an ordinary piece too, as sentencepiece models do."""
    pieces = [("<unk>", -9.0), ("<s>", -1.0), ("</s>", -1.0), *((c, -2.0) for c in "<s>/ab▁")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return BackboneTokenizer(wrapped, vocab_size=len(pieces))


def test_encode_text_of_a_vocabulary_with_special_pieces_cuts_through_them() -> None:
    tokenizer = make_unigram()
    assert not tokenizer.reserved.intersection(tokenizer.encode_text("a<s>b</s>"))
    assert tokenizer.encode_segment([Piece("<s>", author=True), Piece("a<s>", author=False)])[0] == tokenizer.bos_id


def test_tokenizer_is_not_changed_by_use(tokenizer: BackboneTokenizer) -> None:
    before = tokenizer.canonical_json()
    tokenizer.encode_segment([Piece("<s>x", author=True), Piece("<s>", author=False)])
    assert tokenizer.canonical_json() == before
