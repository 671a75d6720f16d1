"""Where vectors start: what a request may say of it, and the [P, H] tensor that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, StringConstraints, model_validator
from torch import Tensor

from app.training.methods.base import Asked, MethodConfig, Surroundings

FREQUENT_TOKENS = 5000
"""`vocab` draws from this many of the rows' most frequent tokens (Lester et al. 2021)."""

Reference = Annotated[str, StringConstraints(min_length=1, max_length=140)]
"""`task`, `task@version` or `task:alias`."""


class StartedConfig(MethodConfig):
    """A method whose vectors start somewhere."""

    init: Literal["random", "vocab", "text", "labels", "prompt"] = "vocab"
    init_text: str | None = Field(default=None, min_length=1, max_length=8192)
    init_prompt: Reference | None = Field(default=None, description="`task@version`, of the same backbone.")

    @property
    def text(self) -> str:
        return self.init_text or ""

    @model_validator(mode="after")
    def _what_for_whom(self) -> Self:
        if (self.init == "text") != (self.init_text is not None):
            raise ValueError('`init_text` belongs to `init`: "text", and to it alone')
        if (self.init == "prompt") != (self.init_prompt is not None):
            raise ValueError('`init_prompt` belongs to `init`: "prompt", and to it alone')
        return self

    def pinned(self, asked: Asked) -> Self:
        """With `init_prompt` as `task@number`."""
        if self.init_prompt is None:
            return self
        return self.model_copy(update={"init_prompt": asked.versions.pin(self.init_prompt, "method.init_prompt")})

    def start(self, around: Surroundings) -> Tensor:
        """[P, H] float32, on the embeddings' device.

        random   normal, at the embeddings' scale
        vocab    embeddings of tokens drawn from the rows' frequent ones
        text     embeddings of the given text's tokens, repeated or cut to P
        labels   embeddings of the tokens of the labels' words, the labels in turn, filled up as `vocab` does
        prompt   the vectors of another version, repeated or cut to P
        """
        if self.init == "random":
            shape = (around.num_virtual_tokens, around.hidden_size)
            return normal(shape, around.rms, around.generator).to(around.embedding.device)
        if self.init_prompt is not None:
            return fit(around.source(self.init_prompt), around.num_virtual_tokens)
        return rows_of(around.embedding, self._tokens(around))

    def _tokens(self, around: Surroundings) -> list[int]:
        if self.init == "text" and around.text_tokens:
            return repeated(around.text_tokens, around.num_virtual_tokens)
        drawn = draw_tokens(around)
        if self.init == "labels":
            drawn = (_in_turn(around.label_tokens) + drawn)[: around.num_virtual_tokens]
        return drawn


def fit(vectors: Tensor, count: int) -> Tensor:
    """[P, H] → [count, H]: from the first on, over again where there are too few."""
    places = torch.arange(count, device=vectors.device) % vectors.shape[0]
    return vectors[places].clone()


def repeated(tokens: Sequence[int], count: int) -> list[int]:
    return [tokens[j % len(tokens)] for j in range(count)]


def draw_tokens(around: Surroundings) -> list[int]:
    """As many of the rows' frequent tokens as there are virtual ones, by chance, each before any comes again."""
    pool = list(around.frequent[:FREQUENT_TOKENS]) or list(range(around.embedding.shape[0]))
    picks: list[int] = []
    while len(picks) < around.num_virtual_tokens:
        picks += [pool[j] for j in torch.randperm(len(pool), generator=around.generator).tolist()]
    return picks[: around.num_virtual_tokens]


def rows_of(embedding: Tensor, tokens: Sequence[int]) -> Tensor:
    index = torch.as_tensor(tokens, dtype=torch.int64, device=embedding.device)
    return embedding[index].detach().clone().float()


def normal(shape: Sequence[int], scale: float, generator: torch.Generator) -> Tensor:
    """On the CPU, so that a seed means the same wherever it is used."""
    return torch.randn(tuple(shape), generator=generator) * scale


def _in_turn(label_tokens: Sequence[Sequence[int]]) -> list[int]:
    """The first token of each label, then the second of each that has one, and so on."""
    longest = max(map(len, label_tokens), default=0)
    return [tokens[j] for j in range(longest) for tokens in label_tokens if j < len(tokens)]
