"""Plain vectors as an adapter of PEFT's prompt tuning, whoever learned them."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from app.backbone.template import MAX_VIRTUAL_TOKENS
from app.errors import InvalidPrompt
from app.interchange.adapter_config import PROMPT_EMBEDDINGS
from app.interchange.adapter_files import AdapterFiles
from app.interchange.tensor_file import write_tensors

TaskType = Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"]


def vectors_adapter(
    vectors: Tensor, task_type: TaskType, *, submodules: int = 1, base_model: str | None = None, template: str | None
) -> AdapterFiles:
    """[S·P, H] float32 → PROMPT_TUNING. Raises InvalidPrompt for another shape, and values that are not finite."""
    if vectors.dim() != 2 or not 1 <= vectors.shape[0] // submodules <= MAX_VIRTUAL_TOKENS:
        raise InvalidPrompt(f"a prompt is [P, H] with 1 to {MAX_VIRTUAL_TOKENS} vectors, not {list(vectors.shape)}")
    if not vectors.isfinite().all():
        raise InvalidPrompt("the prompt holds NaN or infinity")
    config = {
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_attention_heads": None,
        "num_layers": None,
        "num_transformer_submodules": submodules,
        "num_virtual_tokens": vectors.shape[0] // submodules,
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": task_type,
        "token_dim": vectors.shape[1],
        "tokenizer_name_or_path": None,
    }
    return AdapterFiles(config, write_tensors({PROMPT_EMBEDDINGS: vectors}), template)
