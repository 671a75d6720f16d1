"""Prompts that learn together, for tests: different tasks, lengths, places, rates, seeds, batch sizes and ends.

python -m tests.cotraining FOLDER KILL_AT    checkpoints in FOLDER; SIGKILL at its own report number KILL_AT
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from app.backbone import (
    Backbone,
    BackboneConfig,
    SoftPrompt,
    compile_verbalizer,
    default_bos,
    load_backbone,
    parse_template,
)
from app.training.checkpoints import Checkpoints
from app.training.cotraining import CoTrainer
from app.training.data import Example
from app.training.evaluate import Evaluator
from app.training.examples import Encoder
from app.training.requests import Hyperparameters
from app.training.runs import Judgement, Run
from app.training.schedule import make_schedule
from tests.training_data import mood_rows


@dataclass(frozen=True)
class Kind:
    """What one run is about. `words` None: the answer is free text."""

    template: str
    words: dict[str, list[str]] | None
    gate: bool = False
    rate: float | str = "auto"
    seed: int = 0
    batch_size: int = 4
    steps: int = 8


WORDS = {"bad": [" maybe"], "good": [" sports", " of sports"]}
KINDS = (
    Kind("<prompt:4>{text}\nAnswer:", WORDS, steps=6),
    Kind("<prompt:9>{text}\nIt was", {"bad": [" bad"], "good": [" good"]}, gate=True, seed=3, batch_size=2),
    Kind("{text}<prompt:5>", WORDS, rate=0.002, seed=1, batch_size=5),
    Kind("<prompt:3>{text} It was<prompt:2>", None, seed=2, batch_size=3),
)


class Vectors:
    """A learner of free vectors; with `gate` they are read through a second parameter, and chance falls into them."""

    def __init__(self, start: Tensor, *, gate: bool) -> None:
        self._vectors = nn.Parameter(start.clone())  # [P, H]
        self._gate = nn.Parameter(torch.zeros(start.shape[1])) if gate else None

    def prompt(self) -> Tensor:
        if self._gate is None:
            return self._vectors
        noise = 1 + 0.01 * torch.randn(1)
        return self._vectors * (1 + torch.tanh(self._gate)) * noise

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        named: list[tuple[str, Tensor]] = [("vectors", self._vectors)]
        return named if self._gate is None else [*named, ("gate", self._gate)]

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        return {name: rate or 0.01 for name, _ in self.named_parameters()}


@dataclass
class Hearer:
    """Keeps what it hears of one run, and asks `act` after each step."""

    losses: dict[int, float] = field(default_factory=dict)
    evaluations: list[Judgement] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    saves: list[int] = field(default_factory=list)
    act: Callable[[int, float], None] = lambda step, loss: None
    stop_after: int = 10**9

    def stop_requested(self) -> bool:
        return max(self.losses, default=0) >= self.stop_after

    def began(self, step: int) -> None: ...

    def saved(self, step: int) -> None:
        self.saves.append(step)

    def stepped(self, step: int, loss: float, best: Judgement | None) -> None:
        self.losses[step] = loss
        self.act(step, loss)

    def evaluated(self, step: int, judgement: Judgement, *, best: bool) -> None:
        self.evaluations.append(judgement)

    def warned(self, message: str) -> None:
        self.warnings.append(message)


def make_run(
    backbone: Backbone,
    kind: Kind,
    hearer: Hearer,
    *,
    steps: int | None = None,
    judge: Callable[[SoftPrompt], Judgement] | None = None,
) -> Run:
    verbalizer = None if kind.words is None else compile_verbalizer(backbone.tokenizer, kind.words)
    template = parse_template(kind.template)
    encoder = Encoder(backbone.tokenizer, template, default_bos(backbone.tokenizer), verbalizer, 64)
    examples = [_example(n, row, kind) for n, row in enumerate(mood_rows(), start=1)]
    wanted = {"batch_size": kind.batch_size, "n_epochs": 1, "learning_rate": kind.rate, "seed": kind.seed}
    per_epoch = -(-len(examples) // kind.batch_size)
    wanted["n_epochs"] = (steps or kind.steps) / per_epoch
    schedule = make_schedule(
        Hyperparameters.model_validate(wanted), rows=len(examples), num_virtual_tokens=template.num_virtual_tokens
    )
    start = torch.randn(
        template.num_virtual_tokens, backbone.hidden_size, generator=torch.Generator().manual_seed(kind.seed)
    )
    judge = judge or Evaluator(backbone, encoder, "loss", max_tokens=8, seed=0).quick_judge(examples)
    encoded = [encoder.encode(example) for example in examples]
    learner = Vectors(start * backbone.embedding_rms, gate=kind.gate)
    return Run(learner, encoded, verbalizer, schedule, judge=judge, listener=hearer)


def _example(number: int, row: dict[str, str], kind: Kind) -> Example:
    if kind.words is None:
        return Example(row=number, fields={"text": row["text"]}, output=f"{row['label']} it was")
    return Example(row=number, fields={"text": row["text"]}, label=row["label"])


def cotrain(
    backbone: Backbone,
    runs: Sequence[Run],
    watcher: Hearer,
    folder: Path,
    *,
    checkpoint_s: float = 60,
    attempt: int = 1,
) -> None:
    checkpoints = Checkpoints(folder, attempt=attempt, identity="same")
    CoTrainer(backbone, runs, watcher=watcher, checkpoints=checkpoints, checkpoint_s=checkpoint_s).run()


def main(folder: Path, kill_at: int) -> None:
    """Losses go to `folder`/losses.jsonl as they come: [run, step, loss]."""
    torch.set_num_threads(1)
    backbone = load_backbone(BackboneConfig())
    folder.mkdir(parents=True, exist_ok=True)
    heard = 0
    with (folder / "losses.jsonl").open("a") as file:

        def tell(run: int, step: int, loss: float) -> None:
            nonlocal heard
            file.write(json.dumps([run, step, loss]) + "\n")
            file.flush()
            heard += 1
            if heard == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        hearers = [
            Hearer(act=lambda step, loss, i=i: tell(i, step, loss))  # type: ignore[misc]
            for i in range(len(KINDS))
        ]
        runs = [make_run(backbone, kind, hearer) for kind, hearer in zip(KINDS, hearers, strict=True)]
        cotrain(backbone, runs, hearers[0], folder / "checkpoints", checkpoint_s=0)
        best = {i: {name: t.tolist() for name, t in run.outcome.tensors.items()} for i, run in enumerate(runs)}
        (folder / "best.json").write_text(json.dumps(best))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
