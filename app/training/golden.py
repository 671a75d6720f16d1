"""Golden outputs: what a fresh prompt answers to a few neutral texts of our own, stored in its blob.

Every replica replays them before it serves the version. The texts are ours, never rows of the data, because blobs
travel further than the data they were trained on may.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.backbone import Backbone, SoftPrompt, encode_row, generate_greedy, score_labels
from app.training.examples import Encoder
from prompt_store.models import Golden

TEXTS = (
    "The bakery on the corner opens at six in the morning.",
    "She closed the window because the evening had turned cold.",
    "Two boats are tied to the pier behind the old warehouse.",
    "How long does the train to the coast take on a Sunday?",
)
COUNT = 4
MAX_TOKENS = 8


@torch.no_grad()
def golden_outputs(backbone: Backbone, encoder: Encoder, prompt: SoftPrompt | None) -> tuple[Golden, ...]:
    """One answer for each of a few fixed inputs, each computed alone."""
    return tuple(_answer(backbone, encoder, prompt, fields) for fields in golden_inputs(encoder.template.fields))


def golden_inputs(names: Sequence[str]) -> list[dict[str, str]]:
    """The inputs that are asked, as fields of these names."""
    return [{name: TEXTS[(place + j) % len(TEXTS)] for j, name in enumerate(names)} for place in range(COUNT)]


def _answer(backbone: Backbone, encoder: Encoder, prompt: SoftPrompt | None, fields: dict[str, str]) -> Golden:
    row = encode_row(encoder.tokenizer, encoder.template, encoder.bos, fields)
    if encoder.verbalizer is not None:
        (scores,) = score_labels(backbone, [row], [prompt], [encoder.verbalizer])
        named = zip(encoder.verbalizer.labels, scores.float().tolist(), strict=True)
        return Golden(input=fields, scores=dict(named))
    (generated,) = generate_greedy(backbone, [row], [prompt], max_tokens=MAX_TOKENS)
    return Golden(input=fields, tokens=generated.tokens, margins=generated.margins)
