"""Prompt tuning (Lester et al. 2021): P free vectors before, between or behind the words, and nothing else changes.

With `residual_mlp` the vectors are learned as in `residual.py`, through a small network that is folded away at the end.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from app.training.methods.base import Asked, LearnedMethod, Learner, Surroundings
from app.training.methods.initial import StartedConfig
from app.training.methods.residual import ResidualPrompt

PLAIN_RATE = 0.2
"""Learning rate of free vectors, in units of the embeddings' RMS: Adam moves each coordinate by about this a step."""


class PromptTuningConfig(StartedConfig):
    """Free vectors. `residual_mlp` learns them through a small network that is folded away at the end."""

    type: Literal["prompt_tuning"] = "prompt_tuning"
    reparametrization: Literal["none", "residual_mlp"] = "residual_mlp"


class PromptTuning(LearnedMethod):
    config = PromptTuningConfig

    def check(self, config: PromptTuningConfig, asked: Asked) -> PromptTuningConfig:
        return config.pinned(asked)

    def begin(self, config: PromptTuningConfig, around: Surroundings) -> Learner:
        start = config.start(around)
        if config.reparametrization == "none":
            return PlainPrompt(start, around.rms)
        return ResidualPrompt(start, around)


METHOD = PromptTuning()


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
