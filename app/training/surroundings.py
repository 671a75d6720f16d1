"""What a method may look at when it begins, gathered from a job's plan, its rows, the backbone and the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from app.backbone import Backbone, Row, Verbalizer
from app.backbone.kv import PrefixKV
from app.backbone.runner import FastRunner, PrefillItem
from app.training.cotraining import MICRO_TOKENS
from app.training.examples import Encoded, frequent_tokens
from app.training.gradients import Lesson, accumulate
from app.training.methods import Learner, MethodConfig, Surroundings
from app.training.methods.base import Sources
from app.training.runs import Interrupted, Judgement, Run
from app.training.schedule import Schedule

SAMPLE_ROWS = 2000
"""Training rows looked at for frequent tokens and for cut inputs."""

TRIAL_SHARE = 0.1
"""Share of a job's steps that a learner is tried out for."""


def gather(
    config: MethodConfig,
    schedule: Schedule,
    backbone: Backbone,
    encoded: Sequence[Encoded],
    verbalizer: Verbalizer | None,
    *,
    sources: Sources,
    stop: Callable[[], bool],
) -> Surroundings:
    return Surroundings(
        num_virtual_tokens=schedule.num_virtual_tokens,
        embedding=backbone.embedding_weight.detach().float(),
        frequent=frequent_tokens(encoded[:SAMPLE_ROWS], backbone.tokenizer.reserved),
        label_tokens=_label_tokens(verbalizer),
        text_tokens=backbone.tokenizer.encode_text(config.text),
        generator=torch.Generator().manual_seed(schedule.seed),
        kv_shape=backbone.kv_shape or backbone.decoder_kv_shape,
        keys_of=lambda ids: keys_of(backbone, ids),
        sources=sources,
        try_out=lambda learner: _try_out(learner, schedule, backbone, encoded, verbalizer, stop),
        decoder_embedding=_decoder_embedding(backbone),
    )


@torch.no_grad()
def keys_of(backbone: Backbone, ids: Sequence[int]) -> PrefixKV:
    """Keys and values [2, L, G, len(ids), D] of the tokens as the frozen model reads them, nothing before them. An
    encoder-decoder's are its decoder's, behind its start, of a text without words."""
    if backbone.probed.seq2seq is not None:
        tokenizer = backbone.tokenizer
        return backbone.probed.seq2seq.keys_of(
            (*tokenizer.begin_ids, *tokenizer.end_ids) or backbone.decoder_start, ids
        )
    runner = FastRunner(backbone.forward, slots=1, places=len(ids) + 1)
    runner.prefill(0, [PrefillItem(Row(tuple(ids)))])
    found = runner.read_prefix(0, len(ids))
    assert found is not None
    return found


def _try_out(
    learner: Learner,
    schedule: Schedule,
    backbone: Backbone,
    encoded: Sequence[Encoded],
    verbalizer: Verbalizer | None,
    stop: Callable[[], bool],
) -> None:
    """The first steps of a short schedule, as the training loop takes them. Raises Interrupted when asked to stop."""
    short = replace(schedule, steps=max(1, round(TRIAL_SHARE * schedule.steps)))
    trial = Run(learner, encoded, verbalizer, short, judge=lambda _: Judgement(0.0, 0.0), listener=_Deaf())
    for _ in range(short.steps):
        lesson = Lesson(trial.prompt(), trial.next_batch(), verbalizer)
        (loss,) = accumulate(backbone, [lesson], tokens=MICRO_TOKENS)
        trial.take_step(loss)
        if stop():
            raise Interrupted


def _decoder_embedding(backbone: Backbone) -> Tensor | None:
    if backbone.family != "seq2seq":
        return None
    weight: Tensor = backbone.model.get_decoder().get_input_embeddings().weight
    return weight.detach().float()


class _Deaf:
    """Hears nothing."""

    def stepped(self, step: int, loss: float, best: Judgement | None) -> None: ...
    def evaluated(self, step: int, judgement: Judgement, *, best: bool) -> None: ...
    def warned(self, message: str) -> None: ...


def _label_tokens(verbalizer: Verbalizer | None) -> list[list[int]]:
    if verbalizer is None:
        return []
    return [[token for word in words for token in word] for words in verbalizer.ids]
