"""Prompts for tests: random vectors with a fixed seed over any backbone, in the form the registry hands out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch

from app.backbone import Backbone, Bos, LoadedPrompt, compile_verbalizer, default_bos, parse_template
from prompt_store.models import Decoding, Golden

# One of each placement: leading, leading with P-tuning's second slot, suffix, middle, none.
TEMPLATES = (
    "<prompt:9>Review: {text}\nSentiment:",
    "<prompt:3>{text} It was<prompt:4>",
    "{text}<prompt:6>",
    "Read: <prompt:5>{text} so",
    "Review: {text}\nThe film is",
)
WORDS = {"good": [" good", " great fun to watch"], "bad": [" bad"]}
TEXTS = (
    "a warm and funny story",
    "dull",
    "the plot goes nowhere, and it takes two long hours to get there without a single joke",
    "not bad at all",
    "I would watch it again: the cast is wonderful and the music even better",
)


def make_prompt(
    backbone: Backbone,
    template: str,
    *,
    words: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    bos: Bos | None = None,
    golden: tuple[Golden, ...] = (),
) -> LoadedPrompt:
    parsed = parse_template(template)
    generator = torch.Generator().manual_seed(seed)
    size = parsed.num_virtual_tokens
    scale = backbone.embedding_rms
    vectors = torch.randn(size, backbone.hidden_size, generator=generator) * scale if size else None
    return LoadedPrompt(
        task=f"task-{seed}",
        version=1,
        digest=hashlib.sha256(f"{template}{words}{seed}{backbone.name}".encode()).hexdigest(),
        template=parsed,
        bos=bos or default_bos(backbone.tokenizer),
        learned=vectors,
        verbalizer=compile_verbalizer(backbone.tokenizer, words) if words else None,
        decoding=Decoding(max_tokens=8),
        golden=golden,
    )
