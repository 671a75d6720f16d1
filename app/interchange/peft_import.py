"""An adapter of PEFT as a prompt of this backbone: what its tensors are, and whether they fit.

    PROMPT_TUNING             vectors in front of the text
    P_TUNING                  the same: PEFT saves what its encoder says, not the encoder
    MULTITASK_PROMPT_TUNING   shared ⊙ (cols · rows) of one of its tasks, multiplied out
    PREFIX_TUNING             keys and values of every layer, in front of the text

Of an encoder-decoder's two halves PEFT's prompt tuning and P-tuning read the encoder's alone; multitask prompts are
trained with both, so both are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from app.backbone import Backbone, SoftPrompt
from app.backbone.families.peft_prefix import prompt_from_peft
from app.backbone.soft_prompt import EncoderDecoderPrompt
from app.errors import CapabilityMissing, InvalidPrompt, InvalidRequest
from app.interchange.adapter_config import PROMPT_EMBEDDINGS, TASK_COLS, TASK_ROWS, AdapterConfig, read_config
from app.interchange.prefix_layout import prefix_of
from app.interchange.tensor_file import read_tensors


@dataclass(frozen=True)
class Adapter:
    """A checked adapter: its configuration, and exactly the tensors that belong to its type, float32."""

    config: AdapterConfig
    tensors: Mapping[str, Tensor]

    @staticmethod
    def read(config: Mapping[str, Any], model: bytes) -> Adapter:
        """From the fields of `adapter_config.json` and the bytes of `adapter_model.safetensors`.

        Raises CapabilityMissing, InvalidPrompt and TooLarge, as the two files' readers do.
        """
        checked = read_config(config)
        return Adapter(checked, read_tensors(model, checked.tensor_names))


def to_prompt(adapter: Adapter, backbone: Backbone, *, task_index: int | None = None) -> SoftPrompt:
    """What the adapter has learned, in the form that this backbone reads. `task_index`: which task of a multitask
    prompt; needed where it has several.

    Raises:
        CapabilityMissing: the adapter is for another family of models, or the backbone takes no keys and values.
        InvalidPrompt: shapes that are not this backbone's, or not what the configuration says.
        InvalidRequest: a task index that is missing or out of range.
    """
    config = adapter.config
    if config.family != backbone.family:
        raise CapabilityMissing(
            f"the adapter is for {config.task_type}, and {backbone.name} is {backbone.family}",
            param="adapter_config.task_type",
        )
    if task_index is not None and config.peft_type != "MULTITASK_PROMPT_TUNING":
        raise InvalidRequest("only a multitask prompt has tasks to choose from", param="task_index")
    if config.peft_type == "PREFIX_TUNING":
        return _prefix(adapter, backbone)
    return _vectors(adapter, backbone, task_index)


def _vectors(adapter: Adapter, backbone: Backbone, task_index: int | None) -> SoftPrompt:
    config = adapter.config
    _compare(config.token_dim, backbone.hidden_size, "token_dim", "wide word embeddings", backbone)
    count = config.num_virtual_tokens * config.submodules
    vectors = _shaped(adapter, PROMPT_EMBEDDINGS, (count, backbone.hidden_size))
    multitask = config.peft_type == "MULTITASK_PROMPT_TUNING"
    if multitask:
        vectors = _of_task(adapter, vectors, task_index)
    encoder = vectors[: config.num_virtual_tokens].contiguous()
    if multitask and config.submodules == 2:
        return EncoderDecoderPrompt(encoder, vectors[config.num_virtual_tokens :].contiguous())
    return encoder


def _of_task(adapter: Adapter, shared: Tensor, index: int | None) -> Tensor:
    """One task's vectors, in the order of PEFT's own products: `shared` alone has the right shape and means nothing."""
    cols, rows = adapter.tensors[TASK_COLS], adapter.tensors[TASK_ROWS]
    tasks = cols.shape[0] if cols.dim() == 3 else 0
    if not tasks or cols.shape[1] != shared.shape[0] or rows.shape != (tasks, cols.shape[2], shared.shape[1]):
        raise InvalidPrompt(
            f"`{TASK_COLS}` {list(cols.shape)} and `{TASK_ROWS}` {list(rows.shape)} are no factors of "
            f"{list(shared.shape)}",
            param="adapter_model",
        )
    if adapter.config.num_tasks not in (None, tasks):
        raise InvalidPrompt(f"`num_tasks` is {adapter.config.num_tasks}, the tensors are of {tasks}")
    if index is None and tasks > 1:
        raise InvalidRequest(f"the adapter holds {tasks} tasks: say which, 0 to {tasks - 1}", param="task_index")
    if not 0 <= (index or 0) < tasks:
        raise InvalidRequest(f"the adapter's tasks are 0 to {tasks - 1}", param="task_index")
    return shared * (cols[index or 0] @ rows[index or 0])


def _prefix(adapter: Adapter, backbone: Backbone) -> SoftPrompt:
    config = adapter.config
    shape = backbone.kv_shape if backbone.family == "causal" else backbone.decoder_kv_shape
    if shape is None:
        raise CapabilityMissing(
            f"{backbone.name} cannot take keys and values from outside, which prefix tuning learns",
            param="adapter_config.peft_type",
        )
    _compare(config.num_layers, shape.layers, "num_layers", "layers", backbone)
    _compare(config.num_attention_heads, shape.groups, "num_attention_heads", "key and value heads", backbone)
    _compare(config.token_dim, shape.groups * shape.width, "token_dim", "wide keys", backbone)
    width = 2 * shape.layers * shape.groups * shape.width
    matrix = _shaped(adapter, PROMPT_EMBEDDINGS, (config.num_virtual_tokens, width))
    return prefix_of(matrix, shape) if backbone.family == "causal" else prompt_from_peft(matrix, shape)


def _shaped(adapter: Adapter, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = adapter.tensors[name]
    if tuple(tensor.shape) != shape:
        raise InvalidPrompt(f"`{name}` is {list(tensor.shape)}; here it is {list(shape)}", param="adapter_model")
    return tensor


def _compare(given: int | None, ours: int, field: str, what: str, backbone: Backbone) -> None:
    if given not in (None, ours):
        raise InvalidPrompt(
            f"`{field}` is {given}, and {backbone.name} has {ours} {what}: the adapter belongs to another model",
            param=f"adapter_config.{field}",
        )
