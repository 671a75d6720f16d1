"""Adapters as PEFT itself saves them: PEFT's model around a small backbone, random weights, a folder of files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import (
    MultitaskPromptTuningConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

from app.backbone import Backbone, LoadedPrompt
from app.backbone.backbone import wrap_model
from app.backbone.prompt import check_prompt
from app.interchange.adapter_files import AdapterFiles, read_folder
from app.interchange.drafting import Draft, Wanted, prepare
from tests.architectures import build_backbone, build_model

SIZE = 5
TASKS = 3
KINDS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING")


def peft_model(backbone: Backbone, kind: str, *, seed: int = 3, **options: Any) -> Any:
    """PEFT's model with an adapter of the kind, whose weights are random and large enough to matter."""
    common = {
        "task_type": "SEQ_2_SEQ_LM" if backbone.family == "seq2seq" else "CAUSAL_LM",
        "num_virtual_tokens": SIZE,
        **options,
    }
    configs = {
        "PROMPT_TUNING": lambda: PromptTuningConfig(**common),
        "P_TUNING": lambda: PromptEncoderConfig(encoder_hidden_size=32, **common),
        "PREFIX_TUNING": lambda: PrefixTuningConfig(**common),
        "MULTITASK_PROMPT_TUNING": lambda: MultitaskPromptTuningConfig(num_tasks=TASKS, num_ranks=2, **common),
    }
    model = get_peft_model(copy.deepcopy(backbone.model), configs[kind]()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.prompt_encoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.5 if kind == "P_TUNING" else 1))
    return model


def save(model: Any, folder: Path) -> AdapterFiles:
    model.save_pretrained(folder)
    return read_folder(folder)


def load_in_peft(backbone: Backbone, folder: Path) -> Any:
    """What PEFT makes of a folder."""
    return PeftModel.from_pretrained(copy.deepcopy(backbone.model), folder).eval()


def draft(files: AdapterFiles, backbone: Backbone, **wanted: Any) -> Draft:
    return prepare(Wanted("mood", files, create_task=True, **wanted), None, backbone)


def loaded(made: Draft, backbone: Backbone) -> LoadedPrompt:
    """The draft as the registry would hand it out."""
    return check_prompt(made.meta, made.tensors, backbone, number=1, digest="d" * 64)


def serving_llama() -> Backbone:
    """A small Llama as a service holds it: its weights laid out for serving alone, and a model of its own for that."""
    plain = build_backbone("llama")
    wrapped = wrap_model(build_model("llama"), plain.tokenizer, name=plain.name, identity=plain.fingerprint)
    return wrapped.for_serving()
