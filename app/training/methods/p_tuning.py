"""P-tuning (Liu et al. 2021): the vectors of all slots come out of a small encoder over P learned inputs.

The encoder is that of PEFT's `PromptEncoder`, weight for weight: three linear layers with ReLU between them, or a
bidirectional LSTM with two. Slots stand anywhere in the template; the words between them are the anchors. What the
encoder says at the end is the version, a [P, H] tensor; the encoder itself stays behind.

    https://github.com/huggingface/peft/blob/main/src/peft/tuners/p_tuning/model.py
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt
from torch import Tensor, nn

from app.training.methods.base import LearnedMethod, Learner, MethodConfig, Surroundings
from app.training.methods.networks import last_of, network_rates, scale_output, start_network

RATE = 1e-3
"""Learning rate of the encoder; its last layer's is scaled as its output is."""


class PTuningConfig(MethodConfig):
    """The vectors come out of an encoder, which is folded away at the end."""

    type: Literal["p_tuning"] = "p_tuning"
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden_size: Annotated[StrictInt, Field(ge=1, le=8192)] | None = Field(
        default=None, description="Width of the encoder; the backbone's own unless given."
    )
    num_layers: Annotated[StrictInt, Field(ge=1, le=4)] = Field(default=2, description="Layers of the LSTM.")


class PTuning(LearnedMethod):
    config = PTuningConfig

    def begin(self, config: PTuningConfig, around: Surroundings) -> Learner:
        width = config.hidden_size or around.hidden_size
        encoder: MLPEncoder | LSTMEncoder
        if config.encoder == "mlp":
            encoder = MLPEncoder(around.num_virtual_tokens, around.hidden_size, width)
        else:
            encoder = LSTMEncoder(around.num_virtual_tokens, around.hidden_size, width, config.num_layers)
        start_network(encoder, around.generator)
        factor = scale_output(last_of(encoder.mlp_head), encoder(), around.rms)
        return EncodedPrompt(encoder.to(around.embedding.device), factor)


METHOD = PTuning()


class MLPEncoder(nn.Module):
    """[P, H] of P learned inputs; parameters are named as PEFT's are."""

    def __init__(self, count: int, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, size)
        self.mlp_head = nn.Sequential(
            nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size)
        )

    def forward(self) -> Tensor:
        return self.mlp_head(self.embedding.weight)


class LSTMEncoder(nn.Module):
    """[P, H] of P learned inputs, read in both directions; parameters are named as PEFT's are."""

    def __init__(self, count: int, size: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, size)
        self.lstm_head = nn.LSTM(size, width, num_layers=layers, bidirectional=True, batch_first=True)
        self.mlp_head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, size))

    def forward(self) -> Tensor:
        states, _ = self.lstm_head(self.embedding.weight[None])
        return self.mlp_head(states)[0]


class EncodedPrompt:
    """What the encoder says."""

    def __init__(self, encoder: MLPEncoder | LSTMEncoder, last_factor: float) -> None:
        self.encoder = encoder
        self._last_factor = last_factor

    def prompt(self) -> Tensor:
        return self.encoder()

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return list(self.encoder.named_parameters())

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        return network_rates(
            self.encoder, last_of(self.encoder.mlp_head), rate, auto=RATE, last_factor=self._last_factor
        )
