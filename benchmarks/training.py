"""How fast prompts learn: beside PEFT with transformers' Trainer, and eight together beside one after another.

    python -m benchmarks.training --data DIR [--model FOLDER --dtype bfloat16] [--steps 12] [--write FILE]

Both sides learn the same vectors on the same rows from the same model in the same dtype: 20 virtual tokens, batches of
16, the mean loss of the answer's tokens, AdamW; PEFT with dynamic padding and batches grouped by length. Rounds of the
sides alternate; the figures are medians. The time is that of the steps alone: no loading, no evaluation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.backbone import Backbone, BackboneConfig, Template, default_bos, load_backbone, parse_template
from app.backbone.training_form import prepare_for_training
from app.training.checkpoints import Checkpoints
from app.training.cotraining import CoTrainer
from app.training.data import Example
from app.training.examples import Encoded, Encoder
from app.training.runs import Judgement, Run
from app.training.schedule import Schedule
from benchmarks.statistics import conditions

SIZE, ROUNDS, JOBS = 20, 3, 8
TEMPLATE = f"<prompt:{SIZE}>{{text}}\nAnswer:"
MAX_TOKENS = 256


@dataclass
class Clock:
    """Times the steps of a loop. The first step is not counted: it takes memory and starts threads."""

    times: list[float] = field(default_factory=list)

    def stop_requested(self) -> bool:
        return False

    def began(self, step: int) -> None: ...
    def saved(self, step: int) -> None: ...
    def evaluated(self, step: int, judgement: Judgement, *, best: bool) -> None: ...

    def warned(self, message: str) -> None:
        print(message)

    def stepped(self, step: int, loss: float, best: Judgement | None) -> None:
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.times[0]


class Vectors:
    """Free vectors, as PEFT's prompt tuning has them."""

    def __init__(self, start: Tensor) -> None:
        self._vectors = nn.Parameter(start.clone())

    def prompt(self) -> Tensor:
        return self._vectors

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return [("vectors", self._vectors)]

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        return {"vectors": rate or 1e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", action="append", help="name of a data set in DIR; sst2 and ag_news if none is given")
    parser.add_argument("--model", default="bundled", help="folder of a model; the bundled one if none is given")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--skip-cotraining", action="store_true")
    parser.add_argument("--write", type=Path, help="add the table to this file")
    arguments = parser.parse_args()
    lines = [f"### {Path(arguments.model).name}, {arguments.dtype}", "", conditions() + ".", ""]
    lines += [
        "| rows | tokens a row | PEFT + Trainer, samples/s | Chorus, samples/s | ratio |",
        "|---|---|---|---|---|",
    ]
    for name in arguments.set or ("sst2", "ag_news"):
        rows = read_rows(arguments.data / name / "train.jsonl", 16 * (arguments.steps + 1))
        lines.append(beside_peft(arguments.model, arguments.dtype, name, rows, arguments.steps))
        print(lines[-1], flush=True)
    if not arguments.skip_cotraining:
        rows = read_rows(arguments.data / "sst2" / "train.jsonl", 16 * (arguments.steps + 1))
        lines += ["", f"| rows a step of each of {JOBS} jobs | one after another, samples/s | together | ratio |"]
        lines += ["|---|---|---|---|"]
        for batch in (1, 4, 16):
            lines.append(together(arguments.model, arguments.dtype, rows, batch, arguments.steps))
            print(lines[-1], flush=True)
    report = "\n".join([*lines, ""])
    print(report)
    if arguments.write:
        with arguments.write.open("a", encoding="utf-8") as file:
            file.write("\n" + report)


def read_rows(path: Path, count: int) -> list[Example]:
    """The first rows of a set, the label as the answer."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(count), file, strict=False)]
    return [Example(n, {"text": row["text"]}, output=row["label"]) for n, row in enumerate(rows, start=1)]


def load(model: str, dtype: str) -> Backbone:
    return load_backbone(BackboneConfig(dtype=dtype) if model == "bundled" else BackboneConfig(model, dtype=dtype))


def encode(backbone: Backbone, rows: Sequence[Example]) -> list[Encoded]:
    template: Template = parse_template(TEMPLATE)
    tokenizer = backbone.tokenizer
    if not tokenizer.encode_text(rows[0].fields["text"]):  # a model for its shape alone, whose tokenizer knows no words
        tokenizer = load_backbone(BackboneConfig()).tokenizer
    encoder = Encoder(tokenizer, template, default_bos(tokenizer), None, MAX_TOKENS)
    return [encoder.encode(row) for row in rows]


def start(backbone: Backbone, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, backbone.hidden_size, generator=generator) * backbone.embedding_rms


def beside_peft(model: str, dtype: str, name: str, rows: Sequence[Example], steps: int) -> str:
    ours = prepare_for_training(load(model, dtype))
    encoded = encode(ours, rows)
    theirs = peft_side(load(model, dtype), encoded, steps)
    sides: dict[str, Callable[[], float]] = {"peft": theirs, "chorus": lambda: learn(ours, [encoded], 16, steps)}
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, run in sides.items():
            found[side].append(16 * (steps - 1) / run())
    peft, chorus = (statistics.median(found[side]) for side in ("peft", "chorus"))
    length = sum(one.length for one in encoded) / len(encoded)
    return f"| {name} | {length:.0f} | {spread(found['peft'])} | {spread(found['chorus'])} | {chorus / peft:.2f} |"


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def learn(backbone: Backbone, sets: Sequence[Sequence[Encoded]], batch: int, steps: int) -> float:
    """Seconds of all steps but the first, of prompts that learn together, one for each set of rows."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            Run(
                Vectors(start(backbone, i)),
                encoded,
                None,
                Schedule(batch, 1.0, steps, None, SIZE, seed=i),
                judge=lambda _: Judgement(0.0, 0.0),
                listener=clock if i == 0 else Clock(),
            )
            for i, encoded in enumerate(sets)
        ]
        CoTrainer(
            backbone,
            runs,
            watcher=clock,
            checkpoints=Checkpoints(Path(folder), attempt=1, identity=""),
            checkpoint_s=1e9,
        ).run()
    return clock.seconds


def together(model: str, dtype: str, rows: Sequence[Example], batch: int, steps: int) -> str:
    backbone = prepare_for_training(load(model, dtype))
    encoded = encode(backbone, rows)
    apart, common = [], []
    for _ in range(ROUNDS):
        apart.append(JOBS * batch * (steps - 1) / sum(learn(backbone, [encoded], batch, steps) for _ in range(JOBS)))
        common.append(JOBS * batch * (steps - 1) / learn(backbone, [encoded] * JOBS, batch, steps))
    ratio = statistics.median(common) / statistics.median(apart)
    return f"| {batch} | {spread(apart)} | {spread(common)} | {ratio:.2f} |"


def peft_side(backbone: Backbone, encoded: Sequence[Encoded], steps: int) -> Callable[[], float]:
    """The same rows through PEFT and transformers' Trainer."""
    from peft import PromptTuningConfig, TaskType, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=SIZE, tokenizer_name_or_path=None)
    wrapped = get_peft_model(backbone.model, config)
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(start(backbone))
    texts = [[index for index in one.row.ids if index >= 0] for one in encoded]
    data = [
        {"input_ids": [*text, *one.answer], "labels": [-100] * len(text) + list(one.answer)}
        for text, one in zip(texts, encoded, strict=True)
    ]

    class Steps(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    def run() -> float:
        steps_seen = Steps()
        with tempfile.TemporaryDirectory() as folder:
            options = TrainingArguments(
                folder,
                per_device_train_batch_size=16,
                max_steps=steps,
                learning_rate=1e-3,
                train_sampling_strategy="group_by_length",
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
            )
            trainer = Trainer(wrapped, options, train_dataset=data, data_collator=pad, callbacks=[steps_seen])
            trainer.train()
        return steps_seen.times[-1] - steps_seen.times[0]

    return run


def pad(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Padded on the right to the longest of the batch."""
    width = max(len(row["input_ids"]) for row in rows)

    def table(name: str, filler: int) -> Tensor:
        return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": table("input_ids", 0), "labels": table("labels", -100), "attention_mask": mask}


if __name__ == "__main__":
    main()
