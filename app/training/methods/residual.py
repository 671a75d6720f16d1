"""Residual Prompt Tuning (Razdaibiedina et al. 2023): free vectors, read through a small network with a residual
connection, prompt = V + s · MLP(norm(V)), one network for all vectors.

The network smooths the way the optimiser goes. Its last layer begins at zero, so the start is the plain prompt, and
after training only the resulting [P, H] tensor is kept. Other than in the paper the norm stands before the network, so
that the network's output may begin at zero, and s is the RMS of the word embeddings.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, StrictInt
from torch import Tensor, nn

from app.training.methods.base import Asked, LearnedMethod, Learner, Surroundings
from app.training.methods.initial import StartedConfig, normal

VECTOR_RATE = 0.2
"""Learning rate of the vectors, in units of the embeddings' RMS."""

NETWORK_RATE = 1e-3
BOTTLENECK = 256


class ResidualConfig(StartedConfig):
    """Free vectors, learned through a network with a residual connection, which is folded away at the end."""

    type: Literal["residual"] = "residual"
    bottleneck: Annotated[StrictInt, Field(ge=1, le=4096)] = BOTTLENECK


class Residual(LearnedMethod):
    config = ResidualConfig

    def check(self, config: ResidualConfig, asked: Asked) -> ResidualConfig:
        return config.pinned(asked)

    def begin(self, config: ResidualConfig, around: Surroundings) -> Learner:
        return ResidualPrompt(config.start(around), around, width=config.bottleneck)


METHOD = Residual()


class ResidualPrompt:
    """The vectors [P, H] and the network H → `width` → H."""

    def __init__(self, start: Tensor, around: Surroundings, *, width: int = BOTTLENECK) -> None:
        hidden, device = start.shape[1], start.device
        self._vectors = nn.Parameter(start.clone())
        self._down = nn.Parameter(normal((width, hidden), hidden**-0.5, around.generator).to(device))
        self._bias = nn.Parameter(torch.zeros(width, device=device))
        self._up = nn.Parameter(torch.zeros(hidden, width, device=device))
        self._rms = around.rms

    def prompt(self) -> Tensor:
        normed = nn.functional.layer_norm(self._vectors, self._vectors.shape[1:])
        hidden = nn.functional.gelu(normed @ self._down.T + self._bias)
        return self._vectors + self._rms * (hidden @ self._up.T)

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return [("vectors", self._vectors), ("down", self._down), ("bias", self._bias), ("up", self._up)]

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        auto = VECTOR_RATE * self._rms
        vectors = rate or auto
        network = NETWORK_RATE * vectors / auto
        return {"vectors": vectors, "down": network, "bias": network, "up": network}
