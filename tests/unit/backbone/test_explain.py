from __future__ import annotations

import pytest
import torch

from app.backbone import Backbone
from app.backbone.explain import explain_vectors, prefix_norms
from app.backbone.kv import PrefixKV


def test_a_vector_made_from_a_word_is_explained_by_it(llama: Backbone) -> None:
    table = llama.embedding_weight
    unit = float(table.norm(dim=1).median())
    planted = torch.stack((table[300] * 2, table[41]))
    first, second = explain_vectors(llama, planted, words=3)
    assert [first.words[0].token, second.words[0].token] == [300, 41]
    assert first.words[0].cosine == pytest.approx(1.0, abs=1e-5)
    assert first.words[0].distance == pytest.approx(float(table[300].norm()) / unit, rel=1e-4)
    assert second.words[0].distance == pytest.approx(0.0, abs=1e-3)
    assert first.norm == pytest.approx(2 * float(table[300].norm()) / unit, rel=1e-4)
    assert first.words[0].text == llama.tokenizer.decode([300])
    assert [word.cosine for word in first.words] == sorted((word.cosine for word in first.words), reverse=True)


def test_reserved_tokens_explain_nothing(llama: Backbone) -> None:
    (reserved, *_) = sorted(llama.tokenizer.reserved)
    (view,) = explain_vectors(llama, llama.embedding_weight[[reserved]], words=4)
    assert len(view.words) == 4
    assert not llama.tokenizer.reserved.intersection(word.token for word in view.words)


def test_keys_and_values_have_norms_and_no_words(llama: Backbone) -> None:
    assert llama.kv_shape is not None
    data = torch.zeros(llama.kv_shape.prefix(2))
    data[0, :, :, 1] = 2.0
    prompt = PrefixKV(data)
    assert explain_vectors(llama, prompt) == []
    per_token = llama.kv_shape.layers * llama.kv_shape.groups * llama.kv_shape.width
    assert prefix_norms(prompt) == [[0.0, 0.0], [pytest.approx(2.0 * per_token**0.5), 0.0]]


def test_a_hand_written_prompt_has_nothing_to_explain(llama: Backbone) -> None:
    assert (explain_vectors(llama, None), prefix_norms(None)) == ([], [])
