"""Fifty steps of learning, here and in PEFT with a plain torch loop, from the same start: the same losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from peft import PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from app.backbone import Backbone, default_bos, parse_template
from app.training.checkpoints import Checkpoints
from app.training.cotraining import CoTrainer
from app.training.data import Example
from app.training.examples import Batches, Encoded, Encoder
from app.training.methods import Learner
from app.training.methods.p_tuning import EncodedPrompt, LSTMEncoder, MLPEncoder
from app.training.methods.prefix_tuning import NetworkPrefix, PlainPrefix, PrefixNetwork
from app.training.runs import CLIP_NORM, Judgement, Run
from app.training.schedule import Schedule
from tests.architectures import build_backbone
from tests.cotraining import Hearer, Vectors
from tests.training_data import mood_rows

STEPS, SIZE, RATE, WIDTH = 50, 7, 0.01, 24

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Network = TypeVar("Network", bound=nn.Module)
Begin = Callable[[Backbone, nn.Module], Learner]
"""PEFT's prompt encoder, at its start → our learner at the same one."""


def rows_of(backbone: Backbone) -> list[Encoded]:
    template = parse_template(f"<prompt:{SIZE}>{{text}}\nIt was")
    encoder = Encoder(backbone.tokenizer, template, default_bos(backbone.tokenizer), None, 128)
    examples = [
        Example(n, {"text": row["text"] * (1 + n % 3)}, output=f"{row['label']} as such")
        for n, row in enumerate(mood_rows(), start=1)
    ]
    return [encoder.encode(example) for example in examples]


def ours(backbone: Backbone, rows: list[Encoded], learner: Learner, schedule: Schedule, folder: Path) -> list[float]:
    hearer = Hearer()
    falling = iter(range(10**6, 0, -1))
    run = Run(learner, rows, None, schedule, judge=lambda _: Judgement(0.0, next(falling)), listener=hearer)
    checkpoints = Checkpoints(folder, attempt=1, identity="")
    CoTrainer(backbone, [run], watcher=hearer, checkpoints=checkpoints, checkpoint_s=60).run()
    return [hearer.losses[step] for step in range(1, STEPS + 1)]


def pefts(wrapped: nn.Module, parameters: list[Tensor], rows: list[Encoded], schedule: Schedule) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    order = Batches(tuple(one.length for one in rows), schedule.batch_size, schedule.seed).from_step(0)
    losses = []
    for step in range(STEPS):
        batch = [rows[place] for place in next(order)]
        texts = [[index for index in one.row.ids if index >= 0] for one in batch]
        width = max(len(text) + len(one.answer) for text, one in zip(texts, batch, strict=True))
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for i, (text, one) in enumerate(zip(texts, batch, strict=True)):
            whole = torch.tensor([*text, *one.answer])
            ids[i, : len(whole)], mask[i, : len(whole)] = whole, 1
            labels[i, len(text) : len(whole)] = whole[len(text) :]
        loss = wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.param_groups[0]["lr"] = RATE * schedule.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def plain_vectors(backbone: Backbone, encoder: nn.Module) -> Learner:
    weight = encoder.embedding.weight
    start = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * backbone.embedding_rms
    with torch.no_grad():
        weight.copy_(start)
    return Vectors(start, gate=False)


def plain_prefix(backbone: Backbone, encoder: nn.Module) -> Learner:
    """PEFT's row of a place: layer by layer, its keys, then its values."""
    shape = backbone.kv_shape
    assert shape is not None
    flat = encoder.embedding.weight.detach().view(SIZE, shape.layers, 2, shape.groups, shape.width)
    return PlainPrefix(flat.permute(2, 1, 3, 0, 4).clone(), (1.0, 1.0))


def projected_prefix(backbone: Backbone, encoder: nn.Module) -> Learner:
    assert backbone.kv_shape is not None
    return NetworkPrefix(same_weights(PrefixNetwork(SIZE, backbone.kv_shape, WIDTH), encoder), 1.0)


def encoded_by_mlp(backbone: Backbone, encoder: nn.Module) -> Learner:
    return EncodedPrompt(same_weights(MLPEncoder(SIZE, backbone.hidden_size, WIDTH), encoder), 1.0)


def encoded_by_lstm(backbone: Backbone, encoder: nn.Module) -> Learner:
    return EncodedPrompt(same_weights(LSTMEncoder(SIZE, backbone.hidden_size, WIDTH, 2), encoder), 1.0)


def same_weights(network: Network, encoder: nn.Module) -> Network:
    network.load_state_dict(encoder.state_dict())
    return network


METHODS: dict[str, tuple[type[PeftConfig], dict[str, object], Begin]] = {
    "prompt tuning": (PromptTuningConfig, {}, plain_vectors),
    "prefix tuning": (PrefixTuningConfig, {}, plain_prefix),
    "prefix tuning, projected": (
        PrefixTuningConfig,
        {"prefix_projection": True, "encoder_hidden_size": WIDTH},
        projected_prefix,
    ),
    "p-tuning, MLP": (PromptEncoderConfig, {"encoder_hidden_size": WIDTH}, encoded_by_mlp),
    "p-tuning, LSTM": (
        PromptEncoderConfig,
        {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": WIDTH, "encoder_dropout": 0.0},
        encoded_by_lstm,
    ),
}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_of_fifty_steps_equal_pefts(method: str, name: str, tmp_path: Path) -> None:
    backbone = build_backbone(name)
    rows = rows_of(backbone)
    kind, options, begin = METHODS[method]
    torch.manual_seed(5)
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=SIZE, **options)
    wrapped = get_peft_model(copy.deepcopy(backbone.model), config).eval()
    encoder = wrapped.prompt_encoder["default"]
    learner = begin(backbone, encoder)
    schedule = Schedule(batch_size=4, epochs=1.0, steps=STEPS, learning_rate=RATE, num_virtual_tokens=SIZE, seed=2)
    found = ours(backbone, rows, learner, schedule, tmp_path)
    wanted = pefts(wrapped, [one for one in encoder.parameters() if one.requires_grad], rows, schedule)
    assert found == pytest.approx(wanted, abs=1e-4)
    assert sum(found[-5:]) < 0.95 * sum(found[:5])
