"""Adapters that PEFT has saved give PEFT's logits when they are served; exported versions give ours in PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.backbone import Backbone, LoadedPrompt, answer_logprobs, encode_row
from app.backbone.kv import PrefixKV
from app.backbone.runner import prefill_item
from app.backbone.soft_prompt import to_tensors
from app.errors import CapabilityMissing
from app.interchange.adapter_files import read_folder, write_folder
from app.interchange.peft_export import to_adapter
from app.interchange.prefix_layout import seq2seq_matrix_of
from app.interchange.tensor_file import read_tensors
from tests.adapters import KINDS, TASKS, draft, load_in_peft, loaded, peft_model, save
from tests.architectures import build_backbone
from tests.prompts import TEXTS

ANSWER = (40, 41, 42, 1)
DECODERS = ("llama", "gpt2", "opt", "qwen2")
# peft 0.21 reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def of_peft(model: Any, backbone: Backbone, ids: list[int], task_index: int | None) -> torch.Tensor:
    """PEFT's logits [V] behind a decoder's text, or its log-probabilities of ANSWER behind an encoder's."""
    chosen = {} if task_index is None else {"task_ids": torch.tensor([task_index])}
    fed = torch.tensor([ids])
    chosen |= {"input_ids": fed, "attention_mask": torch.ones_like(fed)}
    with torch.no_grad():
        if backbone.family == "causal":
            return model(**chosen).logits[0, -1]
        start = torch.tensor([[*backbone.decoder_start, *ANSWER[:-1]]])
        if task_index is None:
            logits = model(**chosen, decoder_input_ids=start).logits[0]
        elif model.active_peft_config.num_transformer_submodules == 1:  # here PEFT passes on labels alone
            logits = model(**chosen, labels=torch.tensor([ANSWER])).logits[0]
        else:  # and here the decoder's embeddings
            logits = model(**chosen, decoder_inputs_embeds=model.word_embeddings(start)).logits[0]
    return logits[-len(ANSWER) :].log_softmax(-1)[range(len(ANSWER)), list(ANSWER)]


def check_same(prompt: LoadedPrompt, model: Any, backbone: Backbone, task_index: int | None = None) -> None:
    """On every text, each served beside the others."""
    rows = [encode_row(backbone.tokenizer, prompt.template, prompt.bos, {"text": text}) for text in TEXTS]
    texts = [[index for index in row.ids if index >= 0] for row in rows]
    if backbone.family == "causal":
        runner = backbone.runner(slots=len(rows), places=128)
        served = list(runner.prefill(0, [prefill_item(row, prompt.learned) for row in rows]).logits)
    else:
        served = answer_logprobs(backbone, rows, [prompt.learned] * len(rows), [ANSWER] * len(rows))
    bare = answer_logprobs(backbone, rows[:1], [None], [ANSWER]) if not prompt.template.slots else None
    for ours, ids in zip(served, texts, strict=True):
        assert torch.allclose(ours, of_peft(model, backbone, ids, task_index), atol=1e-4)
    assert bare is None or not torch.allclose(served[0], bare[0], atol=1e-2)


def task_of(kind: str) -> int | None:
    return TASKS - 1 if kind == "MULTITASK_PROMPT_TUNING" else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DECODERS)
def test_served_logits_of_an_imported_adapter_equal_pefts(name: str, kind: str, tmp_path: Path) -> None:
    backbone = build_backbone(name)
    model = peft_model(backbone, kind)
    made = draft(save(model, tmp_path), backbone, task_index=task_of(kind))
    check_same(loaded(made, backbone), model, backbone, task_of(kind))


@pytest.mark.parametrize(
    ("kind", "submodules"),
    [
        ("PROMPT_TUNING", 1),
        ("PROMPT_TUNING", 2),
        ("P_TUNING", 2),
        ("PREFIX_TUNING", None),
        ("MULTITASK_PROMPT_TUNING", 1),
        ("MULTITASK_PROMPT_TUNING", 2),
    ],
)
def test_an_imported_adapter_of_an_encoder_decoder_scores_as_pefts(
    kind: str, submodules: int | None, tmp_path: Path
) -> None:
    backbone = build_backbone("t5_gated")
    model = peft_model(backbone, kind, num_transformer_submodules=submodules)
    made = draft(save(model, tmp_path), backbone, task_index=task_of(kind))
    check_same(loaded(made, backbone), model, backbone, task_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*DECODERS, "qwen3"])
def test_an_exported_version_loads_in_peft_with_the_same_numbers(name: str, kind: str, tmp_path: Path) -> None:
    backbone = build_backbone(name)
    first = save(peft_model(backbone, kind), tmp_path / "first")
    made = draft(first, backbone, task_index=task_of(kind))
    prompt = loaded(made, backbone)
    write_folder(to_adapter(prompt, backbone), tmp_path / "second")
    check_same(prompt, load_in_peft(backbone, tmp_path / "second"), backbone)
    again = draft(read_folder(tmp_path / "second"), backbone)
    assert {name: part.tobytes() for name, part in again.tensors.items()} == {
        name: part.tobytes() for name, part in made.tensors.items()
    }
    assert again.meta.template == made.meta.template
    if kind != "MULTITASK_PROMPT_TUNING":  # whose product has no factors any more
        names = frozenset({"prompt_embeddings"})
        ours = read_tensors((tmp_path / "second" / "adapter_model.safetensors").read_bytes(), names)
        theirs = read_tensors(first.model, names)
        assert torch.equal(ours["prompt_embeddings"], theirs["prompt_embeddings"])


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
@pytest.mark.parametrize("name", ["t5_gated", "bart"])
def test_an_exported_version_of_an_encoder_decoder_loads_in_peft(name: str, kind: str, tmp_path: Path) -> None:
    backbone = build_backbone(name)
    made = draft(save(peft_model(backbone, kind), tmp_path / "first"), backbone)
    prompt = loaded(made, backbone)
    write_folder(to_adapter(prompt, backbone), tmp_path / "second")
    check_same(prompt, load_in_peft(backbone, tmp_path / "second"), backbone)
    again = draft(read_folder(tmp_path / "second"), backbone)
    assert {name: part.tobytes() for name, part in again.tensors.items()} == {
        name: part.tobytes() for name, part in made.tensors.items()
    }


def test_a_projected_prefix_is_imported_as_what_its_network_says(tmp_path: Path) -> None:
    backbone = build_backbone("llama")
    model = peft_model(backbone, "PREFIX_TUNING", prefix_projection=True)
    made = draft(save(model, tmp_path), backbone)
    check_same(loaded(made, backbone), model, backbone)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_prompts_of_half_precision_are_imported_without_loss(kind: str, tmp_path: Path) -> None:
    backbone = build_backbone("llama")
    model = peft_model(backbone, kind)
    model.prompt_encoder.to(torch.bfloat16)
    made = draft(save(model, tmp_path), backbone)
    stored = model.prompt_encoder["default"].embedding.weight.detach().float()
    (ours,) = to_tensors(loaded(made, backbone).learned).values()
    matrix = ours if kind == "PROMPT_TUNING" else ours.permute(3, 1, 0, 2, 4).reshape(stored.shape)
    assert torch.equal(matrix, stored)


def test_a_learned_prefix_of_an_encoder_decoder_whose_layers_differ_is_not_exported() -> None:
    backbone = build_backbone("bart")
    shape = backbone.decoder_kv_shape
    assert shape is not None
    assert shape.layers == 2  # in PEFT both read slots 0 and 1
    prefix = PrefixKV(torch.randn(shape.prefix(4), generator=torch.Generator().manual_seed(1)))
    with pytest.raises(CapabilityMissing, match="share"):
        seq2seq_matrix_of(prefix)
