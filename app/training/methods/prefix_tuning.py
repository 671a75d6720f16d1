"""Prefix tuning (Li and Liang 2021): keys and values of P places in front of the text, learned in every layer.

`none` learns them as they are. `mlp` is PEFT's `prefix_projection`, weight for weight: P learned inputs through
Linear → Tanh → Linear to the keys and values of all layers, folded away at the end. Where they begin as those of a text
or of words, the network's output is added to them, and both are learned.

In an encoder-decoder they stand in front of the decoder's own tokens, as in PEFT. There they are no part of the text
that the encoder reads: the template's slot says how many, and the version's template has none.

    https://github.com/huggingface/peft/blob/main/src/peft/tuners/prefix_tuning/model.py
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, StrictInt, model_validator
from torch import Tensor, nn

from app.backbone import Template
from app.backbone.kv import KVShape, PrefixKV
from app.errors import CapabilityMissing, InvalidTemplate
from app.training.methods.base import Asked, LearnedMethod, Learner, MethodConfig, Surroundings
from app.training.methods.initial import draw_tokens, normal, repeated
from app.training.methods.networks import last_of, network_rates, scale_output, start_network
from app.training.methods.sides import DecoderPrefix
from prompt_store.models import Family

RATE = 0.1
"""Learning rate of keys and values, each in units of the RMS of real ones."""

NETWORK_RATE = 1e-3
WIDTH = 512

_NO_KEYS = "this backbone cannot be given keys and values, which prefix tuning learns"


class PrefixTuningConfig(MethodConfig):
    """Keys and values per layer, in front of the text: one slot, which comes first in the template."""

    type: Literal["prefix_tuning"] = "prefix_tuning"
    init: Literal["vocab", "text", "random", "zero"] = "vocab"
    init_text: str | None = Field(default=None, min_length=1, max_length=8192)
    reparametrization: Literal["none", "mlp"] = "none"
    hidden_size: Annotated[StrictInt, Field(ge=1, le=8192)] = Field(default=WIDTH, description="Width of the network.")

    @property
    def text(self) -> str:
        return self.init_text or ""

    @model_validator(mode="after")
    def _text_for_text(self) -> Self:
        if (self.init == "text") != (self.init_text is not None):
            raise ValueError('`init_text` belongs to `init`: "text", and to it alone')
        return self


class PrefixTuning(LearnedMethod):
    config = PrefixTuningConfig

    def check(self, config: PrefixTuningConfig, asked: Asked) -> PrefixTuningConfig:
        if not asked.template.leads:
            raise InvalidTemplate(
                "prefix tuning learns what stands in front of the text: one slot, at the template's very beginning",
                param="template",
            )
        backbone = asked.backbone
        if backbone is not None and backbone.kv_shape is None and backbone.decoder_kv_shape is None:
            raise CapabilityMissing(_NO_KEYS, param="method.type")
        return config

    def wording(self, config: PrefixTuningConfig, template: Template, family: Family) -> Template:
        return template.without_slots() if family == "seq2seq" else template

    def decoder_tokens(self, config: PrefixTuningConfig, template: Template, family: Family) -> int:
        return template.num_virtual_tokens if family == "seq2seq" else 0

    def begin(self, config: PrefixTuningConfig, around: Surroundings) -> Learner:
        learner = self._begin(config, around)
        return learner if around.decoder_embedding is None else DecoderPrefix(learner)

    def _begin(self, config: PrefixTuningConfig, around: Surroundings) -> Learner:
        if around.kv_shape is None or around.keys_of is None:
            raise CapabilityMissing(_NO_KEYS, param="method.type")
        drawn = draw_tokens(around)
        scale = scales_of(around.keys_of(drawn).data)
        start = _start(config, around, drawn, scale)
        if config.reparametrization == "none":
            return PlainPrefix(start, scale)
        network = PrefixNetwork(around.num_virtual_tokens, around.kv_shape, config.hidden_size)
        start_network(network, around.generator)
        last = last_of(network.transform)
        factor = scale_output(last, network(), (scale[0] * scale[1]) ** 0.5)
        network.to(around.embedding.device)
        if config.init == "random":
            return NetworkPrefix(network, factor)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return NetworkPrefix(network, factor, PlainPrefix(start, scale) if config.init != "zero" else None)


METHOD = PrefixTuning()


def scales_of(data: Tensor) -> tuple[float, float]:
    """RMS of keys and of values, over all layers."""
    keys, values = (float(part.float().pow(2).mean().sqrt()) for part in data)
    return keys, values


def _start(config: PrefixTuningConfig, around: Surroundings, drawn: list[int], scale: tuple[float, float]) -> Tensor:
    """[2, L, G, P, D] float32, on the embeddings' device."""
    assert around.kv_shape is not None
    assert around.keys_of is not None
    shape, device = around.kv_shape.prefix(around.num_virtual_tokens), around.embedding.device
    if config.init == "zero":
        return torch.zeros(shape, device=device)
    if config.init == "random":
        keys, values = (normal(shape[1:], of, around.generator) for of in scale)
        return torch.stack((keys, values)).to(device)
    tokens = repeated(around.text_tokens, around.num_virtual_tokens) if config.init == "text" else drawn
    return around.keys_of(tokens).data.detach().clone().float()


class PlainPrefix:
    """Keys and values as they are, [L, G, P, D] each."""

    def __init__(self, start: Tensor, scale: tuple[float, float]) -> None:
        self._keys, self._values = (nn.Parameter(part.clone()) for part in start)
        self._scale = scale

    def prompt(self) -> PrefixKV:
        return PrefixKV(torch.stack((self._keys, self._values)))

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return [("keys", self._keys), ("values", self._values)]

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        keys, values = self._scale
        return {"keys": rate or RATE * keys, "values": rate or RATE * values}


class PrefixNetwork(nn.Module):
    """P learned inputs → [2, L, G, P, D]; parameters are named, and their output is ordered, as PEFT's are."""

    def __init__(self, count: int, shape: KVShape, width: int) -> None:
        super().__init__()
        size = shape.groups * shape.width  # PEFT's `token_dim`, where heads share keys too
        self.embedding = nn.Embedding(count, size)
        self.transform = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, shape.layers * 2 * size))
        self._shape = shape

    def forward(self) -> Tensor:
        flat: Tensor = self.transform(self.embedding.weight)
        shape = self._shape
        by_layer = flat.view(-1, shape.layers, 2, shape.groups, shape.width)  # keys of a layer, then its values
        return by_layer.permute(2, 1, 3, 0, 4)


class NetworkPrefix:
    """What the network says, on top of what it began as."""

    def __init__(self, network: PrefixNetwork, last_factor: float, start: PlainPrefix | None = None) -> None:
        self.network = network
        self._last_factor = last_factor
        self._start = start

    def prompt(self) -> PrefixKV:
        said: Tensor = self.network()
        return PrefixKV(said.contiguous() if self._start is None else self._start.prompt().data + said)

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        own: list[tuple[str, Tensor]] = list(self.network.named_parameters())
        return own if self._start is None else [*own, *self._start.named_parameters()]

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        rates = network_rates(
            self.network, last_of(self.network.transform), rate, auto=NETWORK_RATE, last_factor=self._last_factor
        )
        return rates if self._start is None else rates | self._start.learning_rates(rate)
