"""Prompt tuning: P free vectors before, between or behind the words, and nothing else of the model changes.

With `residual_mlp` the vectors are read through a small network, prompt = V + s · MLP(norm(V)), which smooths the way
the optimiser goes (Residual Prompt Tuning, Razdaibiedina et al. 2023). Its last layer begins at zero, so the start is
the plain prompt, and after training only the resulting [P, H] tensor is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.training.methods.base import Learner, Surroundings
from app.training.requests import PromptTuning as Config

PLAIN_RATE = 0.2
"""Learning rate of free vectors, in units of the embeddings' RMS: Adam moves each coordinate by about this a step."""

RESIDUAL_VECTOR_RATE = 0.2
"""The same where a network stands before the vectors."""

RESIDUAL_MLP_RATE = 1e-3
MLP_WIDTH = 256

FREQUENT_TOKENS = 5000
"""`vocab` draws from this many of the rows' most frequent tokens (Lester et al. 2021)."""


class PromptTuning:
    type = "prompt_tuning"

    def begin(self, config: Config, around: Surroundings) -> Learner:
        start = initial_vectors(config.init, around)
        if config.reparametrization == "none":
            return PlainPrompt(start, around.rms)
        return ResidualPrompt(start, around.rms, around.generator)


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


class ResidualPrompt:
    """The vectors, read through a network with a residual connection."""

    def __init__(self, start: Tensor, rms: float, generator: torch.Generator) -> None:
        hidden = start.shape[1]
        self._vectors = nn.Parameter(start.clone())  # [P, H]
        self._down = nn.Parameter(_normal((MLP_WIDTH, hidden), hidden**-0.5, generator).to(start.device))
        self._bias = nn.Parameter(torch.zeros(MLP_WIDTH, device=start.device))
        self._up = nn.Parameter(torch.zeros(hidden, MLP_WIDTH, device=start.device))
        self._rms = rms

    def prompt(self) -> Tensor:
        normed = nn.functional.layer_norm(self._vectors, self._vectors.shape[1:])
        hidden = nn.functional.gelu(normed @ self._down.T + self._bias)
        return self._vectors + self._rms * (hidden @ self._up.T)

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return [("vectors", self._vectors), ("down", self._down), ("bias", self._bias), ("up", self._up)]

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        auto = RESIDUAL_VECTOR_RATE * self._rms
        vectors = rate or auto
        mlp = RESIDUAL_MLP_RATE * vectors / auto
        return {"vectors": vectors, "down": mlp, "bias": mlp, "up": mlp}


def initial_vectors(init: str, around: Surroundings) -> Tensor:
    """[P, H] float32, on the embeddings' device.

    random   normal, at the embeddings' scale
    vocab    embeddings of tokens drawn from the rows' frequent ones
    text     embeddings of the given text's tokens, repeated or cut to P
    labels   embeddings of the tokens of the labels' words, the labels in turn, filled up as `vocab` does
    """
    count = around.num_virtual_tokens
    if init == "random":
        return _normal((count, around.hidden_size), around.rms, around.generator).to(around.embedding.device)
    if init == "text" and around.text_tokens:
        return _rows(around.embedding, [around.text_tokens[j % len(around.text_tokens)] for j in range(count)])
    drawn = _draw(around)
    if init == "labels":
        drawn = (_in_turn(around.label_tokens) + drawn)[:count]
    return _rows(around.embedding, drawn)


def _in_turn(label_tokens: Sequence[Sequence[int]]) -> list[int]:
    """The first token of each label, then the second of each that has one, and so on."""
    longest = max(map(len, label_tokens), default=0)
    return [tokens[j] for j in range(longest) for tokens in label_tokens if j < len(tokens)]


def _draw(around: Surroundings) -> list[int]:
    pool = list(around.frequent[:FREQUENT_TOKENS]) or list(range(around.embedding.shape[0]))
    picks: list[int] = []
    while len(picks) < around.num_virtual_tokens:
        picks += [pool[j] for j in torch.randperm(len(pool), generator=around.generator).tolist()]
    return picks[: around.num_virtual_tokens]


def _rows(embedding: Tensor, tokens: Sequence[int]) -> Tensor:
    index = torch.as_tensor(tokens, dtype=torch.int64, device=embedding.device)
    return embedding[index].detach().clone().float()


def _normal(shape: tuple[int, int], scale: float, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * scale
