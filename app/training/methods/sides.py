"""Learners for the two sides of an encoder-decoder, made of those that learn one thing."""

from __future__ import annotations

from torch import Tensor

from app.backbone.kv import PrefixKV
from app.backbone.soft_prompt import EncoderDecoderPrompt, SoftPrompt, vectors_of
from app.training.methods.base import Learner

_DECODER = "decoder."


class BothSides:
    """Vectors at the template's slots, and vectors before the decoder's start token; each side has its own learner."""

    def __init__(self, encoder: Learner, decoder: Learner) -> None:
        self._encoder, self._decoder = encoder, decoder

    def prompt(self) -> EncoderDecoderPrompt:
        return EncoderDecoderPrompt(vectors_of(self._encoder.prompt()), vectors_of(self._decoder.prompt()))

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        behind = [(_DECODER + name, parameter) for name, parameter in self._decoder.named_parameters()]
        return [*self._encoder.named_parameters(), *behind]

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        behind = {_DECODER + name: of for name, of in self._decoder.learning_rates(rate).items()}
        return self._encoder.learning_rates(rate) | behind


class DecoderPrefix:
    """Keys and values in front of the decoder's own, learned as they would be in front of a text."""

    def __init__(self, prefix: Learner) -> None:
        self._prefix = prefix

    def prompt(self) -> EncoderDecoderPrompt:
        learned: SoftPrompt = self._prefix.prompt()
        assert isinstance(learned, PrefixKV)
        return EncoderDecoderPrompt(prefix=learned)

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return self._prefix.named_parameters()

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        return self._prefix.learning_rates(rate)
