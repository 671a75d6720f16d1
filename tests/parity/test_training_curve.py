"""Fifty steps of prompt tuning, here and in PEFT with a plain torch loop, from the same start: the same losses."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig, TaskType, get_peft_model

from app.backbone import Backbone, default_bos, parse_template
from app.training.checkpoints import Checkpoints
from app.training.cotraining import CoTrainer
from app.training.data import Example
from app.training.examples import Batches, Encoded, Encoder
from app.training.runs import CLIP_NORM, Judgement, Run
from app.training.schedule import Schedule
from tests.architectures import build_backbone
from tests.cotraining import Hearer, Vectors
from tests.training_data import mood_rows

STEPS, SIZE, RATE = 50, 7, 0.01

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def rows_of(backbone: Backbone) -> list[Encoded]:
    template = parse_template(f"<prompt:{SIZE}>{{text}}\nIt was")
    encoder = Encoder(backbone.tokenizer, template, default_bos(backbone.tokenizer), None, 128)
    examples = [
        Example(n, {"text": row["text"] * (1 + n % 3)}, output=f"{row['label']} as such")
        for n, row in enumerate(mood_rows(), start=1)
    ]
    return [encoder.encode(example) for example in examples]


def ours(backbone: Backbone, rows: list[Encoded], start: torch.Tensor, schedule: Schedule, folder: Path) -> list[float]:
    hearer = Hearer()
    falling = iter(range(10**6, 0, -1))
    run = Run(
        Vectors(start, gate=False),
        rows,
        None,
        schedule,
        judge=lambda _: Judgement(0.0, next(falling)),
        listener=hearer,
    )
    checkpoints = Checkpoints(folder, attempt=1, identity="")
    CoTrainer(backbone, [run], watcher=hearer, checkpoints=checkpoints, checkpoint_s=60).run()
    return [hearer.losses[step] for step in range(1, STEPS + 1)]


def pefts(backbone: Backbone, rows: list[Encoded], start: torch.Tensor, schedule: Schedule) -> list[float]:
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=SIZE, tokenizer_name_or_path=None)
    wrapped = get_peft_model(copy.deepcopy(backbone.model), config).eval()
    weight = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(start)
    optimizer = torch.optim.AdamW([weight], weight_decay=0.0)
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
        torch.nn.utils.clip_grad_norm_([weight], CLIP_NORM)
        optimizer.param_groups[0]["lr"] = RATE * schedule.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_losses_of_fifty_steps_equal_pefts(name: str, tmp_path: Path) -> None:
    backbone = build_backbone(name)
    rows = rows_of(backbone)
    start = torch.randn(SIZE, backbone.hidden_size, generator=torch.Generator().manual_seed(5)) * backbone.embedding_rms
    schedule = Schedule(batch_size=4, epochs=1.0, steps=STEPS, learning_rate=RATE, num_virtual_tokens=SIZE, seed=2)
    found, wanted = ours(backbone, rows, start, schedule, tmp_path), pefts(backbone, rows, start, schedule)
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found[-1] < 0.9 * found[0]
