"""Multitask prompt tuning (MPT, Wang et al. 2023): a shared prompt, bent to one task by a product of low rank.

    prompt = shared ⊙ (cols · rows)         [P, H] ⊙ ([P, R] · [R, H])

A job learns for one task. `source` names the versions that the shared prompt begins as: one, or the mean of several;
without it the shared prompt begins as in prompt tuning. Other than in PEFT, whose product begins near zero, it begins
as ones, so that the start is the shared prompt itself. A version holds the folded [P, H] tensor.

    https://github.com/huggingface/peft/blob/main/src/peft/tuners/multitask_prompt_tuning/model.py
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, StrictInt, model_validator
from torch import Tensor, nn

from app.training.methods.base import Asked, LearnedMethod, Learner, Surroundings
from app.training.methods.initial import Reference, StartedConfig, fit, normal

SHARED_RATE = 0.1
"""Learning rate of the shared prompt, in units of the embeddings' RMS."""

PRODUCT_RATE = 0.02
"""Of the product's factors, which begin at one."""


class MultitaskConfig(StartedConfig):
    """A shared prompt times a product of low rank, folded at the end."""

    type: Literal["multitask"] = "multitask"
    source: list[Reference] | None = Field(
        default=None, min_length=1, max_length=32, description="`task@version` of what the shared prompt begins as."
    )
    num_ranks: Annotated[StrictInt, Field(ge=1, le=64)] = 1

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.source is not None and self.init != "vocab":
            raise ValueError("`source` says where the shared prompt starts: leave `init` out")
        return self


class Multitask(LearnedMethod):
    config = MultitaskConfig

    def check(self, config: MultitaskConfig, asked: Asked) -> MultitaskConfig:
        if config.source is None:
            return config.pinned(asked)
        pinned = [asked.versions.pin(one, f"method.source.{place}") for place, one in enumerate(config.source)]
        return config.model_copy(update={"source": pinned})

    def begin(self, config: MultitaskConfig, around: Surroundings) -> Learner:
        if config.source is None:
            shared = config.start(around)
        else:
            found = [fit(around.source(one), around.num_virtual_tokens) for one in config.source]
            shared = torch.stack(found).mean(0)
        return MultitaskPrompt(shared, config.num_ranks, around)


METHOD = Multitask()


class MultitaskPrompt:
    """The first rank begins as ones; the others begin as nothing, their rows at zero."""

    def __init__(self, shared: Tensor, ranks: int, around: Surroundings) -> None:
        count, size = shared.shape
        device = shared.device
        others = normal((count, ranks - 1), 1.0, around.generator).to(device)
        self._shared = nn.Parameter(shared.clone())  # [P, H]
        self._cols = nn.Parameter(torch.cat((torch.ones(count, 1, device=device), others), 1))  # [P, R]
        self._rows = nn.Parameter(torch.zeros(ranks, size, device=device))  # [R, H]
        with torch.no_grad():
            self._rows[0] = 1
        self._rms = around.rms

    def prompt(self) -> Tensor:
        return fold(self._shared, self._cols, self._rows)

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return [("shared", self._shared), ("cols", self._cols), ("rows", self._rows)]

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        auto = SHARED_RATE * self._rms
        product = PRODUCT_RATE * (rate or auto) / auto
        return {"shared": rate or auto, "cols": product, "rows": product}


def fold(shared: Tensor, cols: Tensor, rows: Tensor) -> Tensor:
    """[P, H], [P, R], [R, H] → [P, H]."""
    return shared * (cols @ rows)
