"""The load probe of masked models: rows of unequal length with prompts, padded into one batch, against each row alone
through the model's plain forward, unpadded and, where it holds no vectors, by token ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from app.backbone.families.masked_forward import MaskedForward, head_of
from app.backbone.layout import embed, lay_out
from app.backbone.probe import MODEL_ERRORS, RELATIVE_TOLERANCE, ProbeResult, random_tokens
from app.backbone.rows import Row
from app.errors import UnsupportedBackbone

_PROMPTS, _TEXTS = (3, 0, 9, 0), (4, 11, 7, 1)
_LONGEST = 1024  # tokens; a context beyond is not run to its end


def masked_context(model: Any, positions: int) -> int:
    """Tokens a row may have: learned positions that begin behind a padding index are fewer than the table's rows."""
    for name, module in model.named_modules():
        table = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
        if table and module.padding_idx is not None:
            positions = min(positions, module.num_embeddings - module.padding_idx - 1)
    return positions


@torch.no_grad()
def probe_masked(model: Any, *, mask_id: int | None, vocab_size: int, context: int) -> ProbeResult:
    """Find the form of the batched forward that agrees with the model's own.

    Raises:
        UnsupportedBackbone: no mask token, or not even rows alone agree.
    """
    if mask_id is None:
        raise UnsupportedBackbone("this masked model's tokenizer has no mask token", param="model")
    rows, prompts = _cases(model, vocab_size, mask_id, min(context, _LONGEST))
    reads = [sorted({0, row.total // 2, row.total - 1}) for row in rows]  # not all: a head may look beside its place
    plain = [_plain(model, row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
    wanted = torch.cat([logits[at] for logits, at in zip(plain, reads, strict=True)])
    tolerance = RELATIVE_TOLERANCE[model.dtype] * max(1.0, float(wanted.abs().max()))
    reason = ""
    for apart, alone in ((True, False), (False, False), (True, True), (False, True)):
        forward = MaskedForward(model, mask_id, head_of(model) if apart else None, alone)
        try:
            logits, _ = forward.logits(rows, prompts, reads)
        except MODEL_ERRORS as error:
            reason = reason or f"the batched forward cannot run: {type(error).__name__}"
            continue
        deviation = float((logits - wanted).abs().max())
        if deviation <= tolerance:
            return ProbeResult(None, deviation, reason if alone else "", masked=forward)
        reason = f"logits of the batched forward differ by {deviation:.2g} (tolerance {tolerance:.2g})"
    raise UnsupportedBackbone(f"this model cannot be served faithfully: {reason}", param="model")


def _cases(model: Any, vocab_size: int, mask: int, longest: int) -> tuple[list[Row], list[Tensor | None]]:
    """Slots before, between and behind words; the last row is as long as the context."""
    generator = torch.Generator().manual_seed(20)
    weight = model.get_input_embeddings().weight
    rows: list[Row] = []
    prompts: list[Tensor | None] = []
    for size, text in zip((*_PROMPTS, 5), (*_TEXTS, longest - 6), strict=True):
        words, slots = _words(model, generator, vocab_size, text), [-1 - j for j in range(size)]
        half = len(slots) // 2
        rows.append(Row((*slots[:half], *words, *slots[half:], mask)))
        prompts.append(weight[random_tokens(generator, vocab_size, size)] * 1.5 if size else None)
    return rows, prompts


def _words(model: Any, generator: torch.Generator, vocab_size: int, count: int) -> list[int]:
    """No padding among them: by ids, RoBERTa does not count it as a position."""
    pad = model.config.pad_token_id
    return [token if token != pad else token + 1 for token in random_tokens(generator, vocab_size - 1, count)]


def _plain(model: Any, row: Row, prompt: Tensor | None) -> Tensor:
    """The model's own forward on one row: logits [T, V] float32."""
    device = model.get_input_embeddings().weight.device
    if prompt is None:
        ids = torch.tensor([row.ids], device=device)
        found: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
        return found
    embeds = embed(lay_out([row], offsets=[0], device=device), model.get_input_embeddings(), prompt)
    alone: Tensor = model(inputs_embeds=embeds).logits[0].float()
    return alone
