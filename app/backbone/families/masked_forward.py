"""The forward of a masked language model: rows of any lengths and prompts side by side, read at their masks.

Rows are right-padded and all tokens of a row see each other. Positions are the model's own (from 0, or behind its
padding index): right padding does not move them. The head runs at the places that are read and nowhere else: the model
is entered anew behind its body, through a copy that shares all weights and whose body hands on what it is given.

Shapes: B rows, T tokens, N places read, H hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from app.backbone.layout import PAD, embed, lay_out, stack_prompts
from app.backbone.rows import Row


class _Given(torch.nn.Module):
    """Stands for a model's body: its output is its input."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


def head_of(model: Any) -> Any:
    """The model from behind its body on: hidden states [1, N, H] in as `inputs_embeds`, logits out."""
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: _Given()}
    return head


@dataclass(frozen=True)
class MaskedForward:
    """The model with what the probe learned about it. `head` None: logits are taken from the whole model. `alone`: rows
    are run one by one, without padding."""

    model: Any
    mask_id: int
    head: Any | None = field(repr=False)
    alone: bool = False

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def logits(
        self, rows: Sequence[Row], prompts: Sequence[Tensor | None], reads: Sequence[Sequence[int]]
    ) -> tuple[Tensor, int]:
        """(logits [N, V] float32 at the places `reads[i]` of each row i, in their order, and how many tokens were
        padding). Differentiable in the prompts' vectors."""
        if self.alone and len(rows) > 1:
            parts = [self.logits([row], [p], [at])[0] for row, p, at in zip(rows, prompts, reads, strict=True)]
            return torch.cat(parts), 0
        embedding = self.model.get_input_embeddings()
        table, offsets = stack_prompts(prompts)
        layout = lay_out(rows, offsets=offsets, device=self.device)
        arguments = {
            "inputs_embeds": embed(layout, embedding, table),
            "attention_mask": (layout.segments != PAD).long(),
        }
        flat = torch.tensor([i * layout.width + at for i, of in enumerate(reads) for at in of], device=self.device)
        padding = layout.rows * layout.width - layout.tokens
        if self.head is None:
            logits = self.model(**arguments).logits  # [B, T, V]
            return logits.reshape(-1, logits.shape[-1]).index_select(0, flat).float(), padding
        hidden = self.model.base_model(**arguments).last_hidden_state  # [B, T, H]
        picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, flat)
        return self.head(inputs_embeds=picked[None]).logits[0].float(), padding
