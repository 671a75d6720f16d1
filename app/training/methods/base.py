"""What a method of learning a prompt is to the trainer: a thing with parameters that says what the prompt is now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from app.backbone import SoftPrompt


@dataclass(frozen=True)
class Surroundings:
    """What a method may look at when it begins.

    embedding       [V, H] float32, the frozen word embeddings
    frequent        token ids of the training rows, most frequent first, special tokens left out
    label_tokens    token ids of each label's words; empty for free text
    text_tokens     token ids of the request's `init_text`; empty without one
    """

    num_virtual_tokens: int
    embedding: Tensor
    frequent: Sequence[int]
    label_tokens: Sequence[Sequence[int]]
    text_tokens: Sequence[int]
    generator: torch.Generator

    @property
    def hidden_size(self) -> int:
        return int(self.embedding.shape[1])

    @property
    def rms(self) -> float:
        """Scale of the word embeddings, which all scales of a method are relative to."""
        return float(self.embedding.pow(2).mean().sqrt())


class Learner(Protocol):
    """One prompt being learned. Everything is float32; parameters live on the backbone's device."""

    def prompt(self) -> SoftPrompt:
        """The prompt as the backbone reads it now, differentiable in the parameters. Whatever helped to learn it is
        folded away, so that its tensors are the blob's."""
        ...

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """All trainable tensors, by stable names: what a checkpoint holds. The first is the prompt's own, whose rate
        users set."""
        ...

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        """Peak learning rate of each parameter. `rate` is the user's, for the prompt's vectors; None chooses."""
        ...


class Method(Protocol):
    """A way to learn. One class in one file, registered by one line in `methods/__init__.py`."""

    type: str

    def begin(self, config: Any, around: Surroundings) -> Learner:
        """A learner at its start; all randomness comes from `around.generator`."""
        ...


def state_of(learner: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}


def load_state(learner: Learner, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            parameter.copy_(state[name])
