from __future__ import annotations

import pytest
import torch

from app.backbone import (
    Backbone,
    BackboneTokenizer,
    compile_verbalizer,
    encode_row,
    label_words,
    parse_template,
    score_labels,
)
from app.backbone.reference import ReferenceRunner
from app.errors import InvalidVerbalizer


def test_compile_keeps_the_order_of_labels(tokenizer: BackboneTokenizer) -> None:
    verbalizer = compile_verbalizer(tokenizer, {"b": [" bad"], "a": [" good", " great"]})
    assert verbalizer.labels == ("b", "a")
    assert [label for label, _ in verbalizer.flat] == [0, 1, 1]


def test_compile_of_a_word_that_begins_another_adds_the_end_token_to_all(tokenizer: BackboneTokenizer) -> None:
    verbalizer = compile_verbalizer(tokenizer, {"x": [" very"], "y": [" very good"], "z": [" bad"]})
    assert verbalizer.terminated
    assert all(word[-1] in tokenizer.eos_ids for _, word in verbalizer.flat)


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"a": [" x"]},
        {"a": [" x"], "b": []},
        {"a": [" x"], "b": ["  "]},
        {"a": [" x"], "b": [" x"]},
        {"a": [" x", " x"], "b": [" y"]},
    ],
)
def test_compile_of_bad_words_raises(tokenizer: BackboneTokenizer, words: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidVerbalizer):
        compile_verbalizer(tokenizer, words)


def test_label_words_take_the_space_that_the_template_wants() -> None:
    assert label_words(["a"], parse_template("{x}:")) == {"a": (" a",)}
    assert label_words(["a"], parse_template("{x}: ")) == {"a": ("a",)}


def test_scores_of_many_words_equal_one_forward_per_word(llama: Backbone) -> None:
    words = {"x": [" very", " nice"], "y": [" very good indeed"], "z": [" bad"]}
    verbalizer = compile_verbalizer(llama.tokenizer, words)
    template = parse_template("<prompt:4>{text} is")
    prompt = torch.randn(4, llama.hidden_size, generator=torch.Generator().manual_seed(1)) * 0.1
    rows = [
        encode_row(llama.tokenizer, template, "after_prompt", {"text": text}) for text in ("a", "a much longer text")
    ]
    with torch.no_grad():
        together = score_labels(llama, rows, [prompt, prompt], [verbalizer, verbalizer])
        alone = ReferenceRunner(llama.model, slots=1, places=0)
        for row, scores in zip(rows, together, strict=True):
            assert torch.allclose(scores, alone.score(row, prompt, verbalizer), atol=1e-4)


def test_scores_of_all_continuations_of_a_terminated_set_stay_below_one(llama: Backbone) -> None:
    verbalizer = compile_verbalizer(llama.tokenizer, {"x": [" very"], "y": [" very good"]})
    row = encode_row(llama.tokenizer, parse_template("{text} is"), "none", {"text": "it"})
    with torch.no_grad():
        scores = score_labels(llama, [row], [None], [verbalizer])[0]
    assert float(scores.exp().sum()) < 1
