"""Prompts of encoder-decoders that PEFT has trained give PEFT's logits: prompt tuning and prefix tuning."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model

from app.backbone import Backbone, Row, answer_logprobs, generate_greedy, score_labels
from app.backbone.families.peft_prefix import prompt_from_peft
from app.backbone.kv import PrefixKV
from app.backbone.runner import prefill_item
from app.backbone.soft_prompt import EncoderDecoderPrompt, SoftPrompt
from app.backbone.verbalizer import Verbalizer
from app.errors import InvalidPrompt
from tests.architectures import build_backbone

SIZE = 5
ROWS = (Row((7, 8, 9, 1)), Row((30, 31, 32, 33, 34, 35, 1)))
ANSWER = (40, 41, 42, 1)
# peft 0.21 reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def wrap(backbone: Backbone, config: Any) -> tuple[Any, torch.Tensor]:
    """(PEFT's model with random weights, its matrix)."""
    wrapped = get_peft_model(copy.deepcopy(backbone.model), config).eval()
    weight = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    return wrapped, weight.detach()


def tuned_prefix(name: str) -> tuple[Backbone, Any, EncoderDecoderPrompt]:
    backbone = build_backbone(name)
    config = PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=SIZE)
    wrapped, weight = wrap(backbone, config)
    assert backbone.decoder_kv_shape is not None
    return backbone, wrapped, prompt_from_peft(weight, backbone.decoder_kv_shape)


def plain(wrapped: Any, start: tuple[int, ...], row: Row) -> torch.Tensor:
    """PEFT's log-probabilities of the answer's tokens."""
    ids = torch.tensor([[index for index in row.ids if index >= 0]])
    fed = torch.tensor([[*start, *ANSWER[:-1]]])
    with torch.no_grad():
        logits = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=fed).logits[0]
    found: torch.Tensor = logits[-len(ANSWER) :].log_softmax(-1)[range(len(ANSWER)), list(ANSWER)]
    return found


@pytest.mark.parametrize("name", ["t5_gated", "bart"])
def test_answers_with_pefts_prefix_equal_pefts(name: str) -> None:
    backbone, wrapped, prompt = tuned_prefix(name)
    found = answer_logprobs(backbone, ROWS, [prompt] * 2, [ANSWER] * 2)
    for row, log_probs in zip(ROWS, found, strict=True):
        assert torch.allclose(log_probs, plain(wrapped, backbone.decoder_start, row), atol=1e-4)


def test_steps_with_pefts_prefix_beside_rows_without_one_equal_pefts() -> None:
    backbone, wrapped, prompt = tuned_prefix("t5_gated")
    prompts: list[SoftPrompt | None] = [prompt, None]
    texts = generate_greedy(backbone, ROWS, prompts, max_tokens=5)
    bare = generate_greedy(backbone, ROWS[1:], [None], max_tokens=5)
    assert texts[1].tokens == bare[0].tokens
    ids, fed = torch.tensor([ROWS[0].ids]), torch.tensor([backbone.decoder_start])
    for token in texts[0].tokens:
        with torch.no_grad():
            logits = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=fed).logits[0, -1]
        assert int(logits.argmax()) == token
        fed = torch.cat((fed, torch.tensor([[token]])), 1)


def test_prompt_tuning_of_an_encoder_decoder_reads_the_encoders_half_as_peft_does() -> None:
    backbone = build_backbone("t5_gated")
    config = PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=SIZE, tokenizer_name_or_path=None)
    wrapped, weight = wrap(backbone, config)
    assert weight.shape[0] == 2 * SIZE
    rows = [Row((*(-1 - j for j in range(SIZE)), *row.ids)) for row in ROWS]
    found = answer_logprobs(backbone, rows, [weight[:SIZE]] * 2, [ANSWER] * 2)
    for row, log_probs in zip(rows, found, strict=True):
        assert torch.allclose(log_probs, plain(wrapped, backbone.decoder_start, row), atol=1e-4)


def test_a_matrix_of_another_shape_is_refused() -> None:
    backbone = build_backbone("t5_gated")
    assert backbone.decoder_kv_shape is not None
    with pytest.raises(InvalidPrompt, match="prompt_embeddings"):
        prompt_from_peft(torch.zeros(SIZE, 100), backbone.decoder_kv_shape)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_keys_and_values_on_both_sides_of_unequal_length_equal_each_row_alone(name: str) -> None:
    backbone = build_backbone(name)
    shape = backbone.decoder_kv_shape
    assert shape is not None
    generator = torch.Generator().manual_seed(9)

    def given(length: int) -> PrefixKV:
        return PrefixKV(torch.randn(shape.prefix(length), generator=generator))

    prompts = [EncoderDecoderPrompt(prefix=given(2), cross=given(3)), EncoderDecoderPrompt(cross=given(1)), None]
    rows = [*ROWS, Row((50, 51, 1))]
    words = Verbalizer(("a", "b"), (("a",), ("b",)), (((60, 61),), ((70,),)), terminated=False, apart=True)
    together = score_labels(backbone, rows, prompts, [words] * 3)
    runner = backbone.runner(slots=3, places=40)
    first = runner.prefill(0, [prefill_item(row, prompt) for row, prompt in zip(rows, prompts, strict=True)])
    lengths = torch.tensor([row.total for row in rows])
    fed = torch.tensor([80, 81, 82])
    second = runner.decode(fed, lengths, int(lengths.max()))
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        (scores,) = score_labels(backbone, [row], [prompt], [words])
        assert torch.allclose(together[i], scores, atol=1e-4)
        alone = backbone.runner(slots=1, places=40)
        assert torch.allclose(first.logits[i], alone.prefill(0, [prefill_item(row, prompt)]).logits[0], atol=1e-4)
        assert torch.allclose(second[i], alone.decode(fed[i : i + 1], lengths[i : i + 1], 40)[0], atol=1e-4)
    (bare,) = score_labels(backbone, rows[:1], [None], [words])
    assert not torch.allclose(together[0], bare, atol=1e-2)
