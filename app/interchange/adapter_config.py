"""`adapter_config.json`: what PEFT says of an adapter, as far as it decides what its tensors mean.

Fields that other versions of PEFT have and we do not need are passed over. What no prompt on a frozen model can express
is refused here, before a tensor is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from app.backbone.template import MAX_VIRTUAL_TOKENS
from app.errors import CapabilityMissing, InvalidPrompt

PeftType = Literal["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"]
METHODS: Mapping[str, str] = {
    "PROMPT_TUNING": "prompt_tuning",
    "P_TUNING": "p_tuning",
    "PREFIX_TUNING": "prefix_tuning",
    "MULTITASK_PROMPT_TUNING": "multitask",
}
"""PEFT's name of each type that can be imported, and ours."""

FAMILIES: Mapping[str, str] = {"CAUSAL_LM": "causal", "SEQ_2_SEQ_LM": "seq2seq"}
"""PEFT's task types that a prompt alone reproduces, and the family of backbone that each is for."""

PROMPT_EMBEDDINGS = "prompt_embeddings"
TASK_COLS, TASK_ROWS = "prefix_task_cols", "prefix_task_rows"

_Count = Annotated[StrictInt, Field(ge=1, le=1 << 20)]
_Name = Annotated[str, Field(max_length=1000)]
_OTHER_PROMPTS = {"CPT", "CARTRIDGE"}


class AdapterConfig(BaseModel):
    """The fields that are read. PEFT leaves counts null until a model is there; null is not compared with anything."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: PeftType
    task_type: Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"]
    num_virtual_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_VIRTUAL_TOKENS)]
    token_dim: _Count | None = None
    num_transformer_submodules: Annotated[StrictInt, Field(ge=1, le=2)] | None = None
    num_attention_heads: _Count | None = None
    num_layers: _Count | None = None
    num_tasks: _Count | None = None
    base_model_name_or_path: _Name | None = None
    revision: _Name | None = None
    peft_version: _Name | None = None

    @property
    def family(self) -> str:
        return FAMILIES[self.task_type]

    @property
    def submodules(self) -> int:
        """How many halves there are: an encoder's and a decoder's, or one."""
        usual = 2 if self.task_type == "SEQ_2_SEQ_LM" else 1
        return usual if self.num_transformer_submodules is None else self.num_transformer_submodules

    @property
    def tensor_names(self) -> frozenset[str]:
        """Exactly the tensors that the adapter's file holds."""
        if self.peft_type == "MULTITASK_PROMPT_TUNING":
            return frozenset({PROMPT_EMBEDDINGS, TASK_COLS, TASK_ROWS})
        return frozenset({PROMPT_EMBEDDINGS})


def read_config(fields: Mapping[str, Any]) -> AdapterConfig:
    """Check the fields of an `adapter_config.json`.

    Raises:
        CapabilityMissing: an adapter that is no prompt (LoRA, adaption prompts …), or one that was trained together
            with a head or other modules.
        InvalidPrompt: fields that are missing or make no sense; `param` names the first.
    """
    _check_kind(fields.get("peft_type"), fields.get("task_type"))
    if fields.get("modules_to_save"):
        raise CapabilityMissing(
            "the adapter was trained together with modules of the model (`modules_to_save`): its prompt alone answers "
            "differently",
            param="adapter_config.modules_to_save",
        )
    try:
        config = AdapterConfig.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        raise InvalidPrompt(f"`{name}`: {first['msg']}", param=f"adapter_config.{name}") from None
    if config.task_type == "CAUSAL_LM" and config.num_transformer_submodules == 2:
        raise InvalidPrompt(
            "`num_transformer_submodules` is 2, and a decoder is one module",
            param="adapter_config.num_transformer_submodules",
        )
    if config.task_type == "SEQ_2_SEQ_LM" and config.peft_type == "PREFIX_TUNING" and config.submodules == 1:
        raise InvalidPrompt(
            "`num_transformer_submodules` is 1, and PEFT gives keys and values to encoder-decoders with 2 alone",
            param="adapter_config.num_transformer_submodules",
        )
    return config


def _check_kind(peft_type: object, task_type: object) -> None:
    """The two fields whose other values are honest adapters of another kind."""
    if isinstance(peft_type, str) and peft_type not in METHODS:
        known = ", ".join(METHODS)
        why = "is a prompt of a kind that is not read" if peft_type in _OTHER_PROMPTS else "changes the model's weights"
        raise CapabilityMissing(
            f"{peft_type[:40]} {why}; prompts that can be imported are {known}", param="adapter_config.peft_type"
        )
    if isinstance(task_type, str) and task_type not in FAMILIES:
        raise CapabilityMissing(
            f"an adapter for {task_type[:40]} was trained together with a head, without which its prompt answers "
            f"differently; prompts that can be imported are for {' or '.join(FAMILIES)}",
            param="adapter_config.task_type",
        )
