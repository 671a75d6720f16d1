"""Prompt tuning (Lester et al. 2021): P free vectors before, between or behind the words, and nothing else changes.

With `residual_mlp` the vectors are learned as in `residual.py`, through a small network that is folded away at the end.
An encoder-decoder may have vectors before its decoder's start token as well, as PEFT's `num_transformer_submodules=2`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt
from torch import Tensor, nn

from app.backbone import Template
from app.errors import CapabilityMissing
from app.training.methods.base import NO_DECODER_SIDE, Asked, LearnedMethod, Learner, Surroundings
from app.training.methods.initial import StartedConfig, draw_tokens, fit, rows_of
from app.training.methods.residual import ResidualPrompt
from app.training.methods.sides import BothSides
from prompt_store.models import Family

PLAIN_RATE = 0.2
"""Learning rate of free vectors, in units of the embeddings' RMS: Adam moves each coordinate by about this a step."""


class PromptTuningConfig(StartedConfig):
    """Free vectors. `residual_mlp` learns them through a small network that is folded away at the end."""

    type: Literal["prompt_tuning"] = "prompt_tuning"
    reparametrization: Literal["none", "residual_mlp"] = "residual_mlp"
    decoder_virtual_tokens: Annotated[StrictInt, Field(ge=1, le=512)] | None = Field(
        default=None, description="Encoder-decoders: vectors before the decoder's start token, beside the encoder's."
    )


class PromptTuning(LearnedMethod):
    config = PromptTuningConfig

    def check(self, config: PromptTuningConfig, asked: Asked) -> PromptTuningConfig:
        if config.decoder_virtual_tokens and asked.backbone is not None and asked.backbone.family != "seq2seq":
            raise CapabilityMissing(NO_DECODER_SIDE, param="method.decoder_virtual_tokens")
        return config.pinned(asked)

    def decoder_tokens(self, config: PromptTuningConfig, template: Template, family: Family) -> int:
        return config.decoder_virtual_tokens or 0

    def begin(self, config: PromptTuningConfig, around: Surroundings) -> Learner:
        encoder = _learner(config, config.start(around), around)
        if config.decoder_virtual_tokens is None:
            return encoder
        beside = around.decoder_side(config.decoder_virtual_tokens)
        return BothSides(encoder, _learner(config, _decoder_start(config, beside), beside))


METHOD = PromptTuning()


def _learner(config: PromptTuningConfig, start: Tensor, around: Surroundings) -> Learner:
    return PlainPrompt(start, around.rms) if config.reparametrization == "none" else ResidualPrompt(start, around)


def _decoder_start(config: PromptTuningConfig, beside: Surroundings) -> Tensor:
    """[Pd, H]: as the encoder's; with `init: "prompt"` the version's own decoder vectors, or else as `vocab`."""
    if config.init_prompt is None:
        return config.start(beside)
    found = None if beside.sources is None else beside.sources.decoder_vectors(config.init_prompt)
    if found is None:
        return rows_of(beside.embedding, draw_tokens(beside))
    return fit(found, beside.num_virtual_tokens)


class PlainPrompt:
    """The vectors themselves."""

    def __init__(self, start: Tensor, rms: float) -> None:
        self._vectors = nn.Parameter(start.clone())  # [P, H]
        self._rms = rms

    def prompt(self) -> Tensor:
        return self._vectors

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return [("vectors", self._vectors)]

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        return {"vectors": rate or PLAIN_RATE * self._rms}
