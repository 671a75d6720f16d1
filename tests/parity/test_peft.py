"""The same vectors in PEFT and in Chorus give the same logits: what PEFT users trained is what is served."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, TaskType, get_peft_model

from app.backbone import Backbone, Row, answer_logprobs, encode_row, parse_template
from app.backbone.runner import PrefillItem
from tests.architectures import build_backbone
from tests.prompts import TEXTS

SIZE = 11

# peft 0.21 reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def random_vectors(backbone: Backbone) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(SIZE, backbone.hidden_size, generator=generator) * backbone.embedding_rms


def peft_model(model: Any, vectors: torch.Tensor) -> Any:
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=SIZE, tokenizer_name_or_path=None)
    wrapped = get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(vectors)
    return wrapped.eval()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "opt", "neox", "mistral_window", "bloom", "dynamic_rope"])
def test_logits_with_a_prompt_equal_pefts(name: str) -> None:
    backbone = build_backbone(name)
    vectors = (
        torch.randn(SIZE, backbone.hidden_size, generator=torch.Generator().manual_seed(3)) * backbone.embedding_rms
    )
    wrapped = peft_model(backbone.model, vectors)
    template = parse_template("<prompt:11>{text} It was")
    runner = backbone.runner(slots=len(TEXTS), places=128)
    rows = [encode_row(backbone.tokenizer, template, "after_prompt", {"text": text}) for text in TEXTS]
    logits = runner.prefill(0, [PrefillItem(row, vectors) for row in rows]).logits
    for i, row in enumerate(rows):
        text_ids = [index for index in row.ids if index >= 0]
        with torch.no_grad():
            wanted = wrapped(input_ids=torch.tensor([text_ids]), attention_mask=torch.ones(1, len(text_ids))).logits[0]
        assert torch.allclose(logits[i], wanted[-1], atol=1e-4)


def test_training_gradients_equal_pefts() -> None:
    backbone = build_backbone("llama")
    vectors = (
        torch.randn(SIZE, backbone.hidden_size, generator=torch.Generator().manual_seed(3)) * backbone.embedding_rms
    )
    wrapped = peft_model(backbone.model, vectors)
    text, answer = backbone.tokenizer.encode_text(TEXTS[2]), backbone.tokenizer.encode_text(" a fine answer")
    ids = torch.tensor([[*text, *answer]])
    labels = torch.tensor([[-100] * len(text) + answer])
    wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
    wanted = wrapped.prompt_encoder["default"].embedding.weight.grad
    ours = vectors.clone().requires_grad_(True)
    row = Row((*(-1 - j for j in range(SIZE)), *text), SIZE)
    (-answer_logprobs(backbone, [row], [ours], [answer])[0].mean()).backward()
    assert ours.grad is not None
    assert torch.allclose(ours.grad, wanted, atol=1e-5)
