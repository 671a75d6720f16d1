"""What a version's metadata says of how its prompt is read, and whether a replica would load what was learned.

A replica refuses values that are not finite in its dtype and vectors far beyond any word's embedding. Training can come
to such vectors with a finite loss, so it asks the replicas' own check before anything is kept or published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from app.backbone import Backbone, SoftPrompt
from app.backbone.prompt import check_prompt
from app.backbone.soft_prompt import to_tensors
from app.errors import InvalidPrompt
from app.training.examples import Encoder
from prompt_store import PromptMeta

_TASK = "learned"


def reading_of(task: str, method: Mapping[str, Any], encoder: Encoder, backbone: Backbone) -> PromptMeta:
    """The metadata of a version that is read as `encoder` reads, without what is known only when it was learned."""
    verbalizer = encoder.verbalizer
    words = ids = None
    if verbalizer is not None:
        words = dict(zip(verbalizer.labels, verbalizer.words, strict=True))
        ids = dict(zip(verbalizer.labels, verbalizer.ids, strict=True))
    return PromptMeta(
        task=task,
        template=encoder.template.source,
        verbalizer=words,
        verbalizer_ids=ids,
        terminated=verbalizer is not None and verbalizer.terminated,
        bos=encoder.bos,
        method=dict(method),
        backbone=backbone.ref,
        num_virtual_tokens=encoder.template.num_virtual_tokens,
    )


def refusal_of(prompt: SoftPrompt | None, encoder: Encoder, backbone: Backbone) -> str:
    """Why no replica would load this prompt, "" where they would."""
    tensors = {name: part.detach().to("cpu", torch.float32).numpy() for name, part in to_tensors(prompt).items()}
    try:
        check_prompt(reading_of(_TASK, {}, encoder, backbone), tensors, backbone)
    except InvalidPrompt as error:
        return error.message.removeprefix(f"{_TASK}: ")
    return ""
