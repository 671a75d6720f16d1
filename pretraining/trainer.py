"""The training loop: one step after another, each a function of the recipe, the shards and the state before it.

What a step needs is in the checkpoint, so a run that was cut off and goes on has the same loss curve as one that was
not: bit for bit in fp32 on one machine with one number of threads. A file `PAUSE` in the work folder makes the loop
wait after the step at hand, its state saved and kept in memory; removing it lets the loop go on.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from pretraining.checkpoint import Training, checkpoints, load_checkpoint, save_checkpoint
from pretraining.errors import PretrainingError, WorkError
from pretraining.files import digest_of_json, read_json, write_atomically
from pretraining.mixture import Mixture, phase_at
from pretraining.objectives import Losses, Objective, Prepared, kind_of_model, objectives_of
from pretraining.optimizer import Average, make_optimizers, rate_at, set_rate, split_parameters
from pretraining.packing import read_manifest, say
from pretraining.place import Place
from pretraining.recipe import Recipe
from pretraining.scoring import evaluate, summary
from pretraining.shards import PackedReader

PAUSE = "PAUSE"
POLL_SECONDS = 1.0


class Trainer:
    """One run. Making it loads the newest checkpoint, if there is one.

    Raises WorkError if the shards are missing, or the checkpoint is of another recipe.
    """

    def __init__(self, recipe: Recipe, place: Place, tokenizer: Tokenizer) -> None:
        self.recipe, self.place, self.tokenizer = recipe, place, tokenizer
        place.work.mkdir(parents=True, exist_ok=True)
        self.key = digest_of_json(
            {"recipe": recipe.training_key(), "shards": read_json(place.texts / "shards" / "manifest.json")["key"]}
        )
        self.mixture = _opened(recipe, place.texts)
        self.objectives = objectives_of(recipe, tokenizer)
        self.model = kind_of_model(recipe).new_model(recipe, tokenizer.get_vocab_size()).to(place.device)
        self.optimizers = make_optimizers(self.model, recipe.train)
        self.average = Average(self.model, recipe.train.average)
        self.training = Training(self.model, self.optimizers, self.average)
        self.step = 0
        self._saved = -1
        self._clipped = split_parameters(self.model)[1]
        self._kept = recipe.kept_steps()
        self._losses: dict[str, Callable[..., Losses]] = {
            name: torch.compile(one.losses, dynamic=False) if recipe.train.compile else one.losses
            for name, one in self.objectives.items()  # shapes are few: one a phase
        }
        self._resume()

    def run(self, until: int | None = None) -> bool:
        """Train up to step `until`, or to the recipe's end, or until SIGTERM or SIGINT; a checkpoint in any case.

        Whether the end was reached.
        """
        end = min(self.recipe.train.steps, self.recipe.train.steps if until is None else until)
        meter = Meter(self.place.log, self.place.device)
        with _stopping() as stop:
            while self.step < end and not stop:
                self._pause(meter, stop)
                if stop:
                    break
                self.train_step(meter)
                self._look(meter, end)
        self._log(meter)
        self.save()
        return self.step >= end

    def train_step(self, meter: Meter) -> float:
        """One step; its loss in nats. Raises PretrainingError if that is not finite: training has diverged."""
        train = self.recipe.train
        stretch = self.recipe.stretch_at(self.step)
        batch = self.mixture.batch(phase_at(self.recipe.phases, self.step / train.steps))
        objective = self.objectives[stretch.objective]
        prepared = objective.prepare(batch, np.random.default_rng((self.recipe.seed, self.step)))
        rate = rate_at(self.step - stretch.begin, train, stretch.end - stretch.begin)
        set_rate(self.optimizers, rate)
        found = self._backward(objective, prepared, batch.weights.shape[1])
        torch.nn.utils.clip_grad_norm_(self._clipped, train.clip)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self.average.update(self.step)
        self.step += 1
        loss = float(found.total)
        if not math.isfinite(loss):
            raise PretrainingError(f"the loss of step {self.step} is {loss}: training has diverged")
        meter.count(loss, rate, found, batch.sources, batch.ids[:, 1:].size)
        return loss

    def _backward(self, objective: Objective, prepared: Prepared, length: int) -> Losses:
        """Gradients of the batch's loss, gathered over parts of a few rows that stay in the processor's cache."""
        train = self.recipe.train
        tensors = prepared.tensors(self.place.device)
        whole = tensors[-2].sum().clamp(min=1e-9)
        device = torch.device(self.place.device).type
        rows = max(1, train.part_tokens // length) if train.part_tokens else len(tensors[0])
        parts: list[Losses] = []
        for some in zip(*(one.split(rows) for one in tensors), strict=True):
            with torch.autocast(device, torch.bfloat16, enabled=train.precision == "bf16"):
                found = self._losses[objective.name](self.model, *some)
            total = found.total * (some[-2].sum() / whole)
            total.backward()
            parts.append(found._replace(total=total.detach()))
        columns = list(zip(*parts, strict=True))
        return Losses(torch.stack(columns[0]).sum(), *(torch.cat(column) for column in columns[1:]))

    def save(self) -> None:
        """A checkpoint of where the run is, unless there is one."""
        if self._saved != self.step:
            state = {"step": self.step, "key": self.key, "mixture": self.mixture.state()}
            save_checkpoint(self.place.checkpoints, self.training, state, kept=self._kept)
            self._saved = self.step

    def _look(self, meter: Meter, end: int) -> None:
        train = self.recipe.train
        last = self.step == end
        if self.step % train.log_every == 0 or last:
            self._log(meter)
        if self.step % train.checkpoint_every == 0 or self.step in self._kept:
            self.save()
        if self.step % train.evaluate_every == 0 or last or self.step in self._kept:
            with meter.elsewhere():
                self.evaluate()

    def _log(self, meter: Meter) -> None:
        if meter.tokens:
            say(meter.write(self.step))

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the averaged weights, and add a line to the file of evaluations."""
        self.average.swap()
        try:
            result = evaluate(self.model, self.objectives, self.recipe, self.place)
        finally:
            self.average.swap()
        with self.place.evaluations.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": self.step, **result}) + "\n")
        say(f"step {self.step}: {summary(result)}")
        return result

    def _resume(self) -> None:
        for unfinished in self.place.checkpoints.glob(".*.part"):  # of a process killed while it wrote
            unfinished.unlink()
        found = checkpoints(self.place.checkpoints)
        if found:
            state = load_checkpoint(found[-1], self.training)
            if state["key"] != self.key:
                raise WorkError(f"{found[-1]} is of another recipe or other shards; move it away to start anew")
            self.step = self._saved = int(state["step"])
            self.mixture.restore(state["mixture"])
            say(f"going on from step {self.step}")
        for file in (self.place.log, self.place.evaluations):
            _cut_lines_after(file, self.step)

    def _pause(self, meter: Meter, stop: list[int]) -> None:
        pause = self.place.work / PAUSE
        if pause.exists():
            self._log(meter)  # a process killed while it waits loses nothing
            self.save()
            say(f"paused after step {self.step}: remove {pause} to go on")
            with meter.elsewhere():
                while pause.exists() and not stop:
                    time.sleep(POLL_SECONDS)


class Meter:
    """Gathers losses by source between two lines of the log, and time, pauses and evaluations left out."""

    def __init__(self, log: Path, device: str = "cpu") -> None:
        self.log = log
        self.device = torch.cuda.get_device_name() if device.startswith("cuda") else device
        self._clear()

    def count(self, loss: float, rate: float, found: Losses, sources: tuple[str, ...], tokens: int) -> None:
        self._losses.append(loss)
        self._rate = rate
        self.tokens += tokens
        columns = [part.tolist() for part in found[1:]]
        for name, *values in zip(sources, *columns, strict=True):
            for index, value in enumerate(values):
                self._sums[name][index] += value

    def write(self, step: int) -> str:
        """Add a line to the log; the same in short, for people."""
        seconds = time.monotonic() - self._since - self._elsewhere
        record = {
            "step": step,
            "loss": sum(self._losses) / len(self._losses),
            "rate": self._rate,
            "tokens_per_second": round(self.tokens / seconds, 1),
            "tokens": self.tokens,
            "seconds": round(seconds, 3),
            "device": self.device,
            "threads": torch.get_num_threads(),
            "sources": {
                name: {"loss": plain / max(count, 1), "answer_loss": answer / answers if answers else None}
                for name, (plain, count, answer, answers) in sorted(self._sums.items())
            },
        }
        with self.log.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        self._clear()
        return f"step {step}: loss {record['loss']:.3f}, {record['tokens_per_second']:,.0f} tokens/s"

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Time that is not training's."""
        began = time.monotonic()
        yield
        self._elsewhere += time.monotonic() - began

    def _clear(self) -> None:
        self._losses: list[float] = []
        self._rate = 0.0
        self.tokens = 0  # counted since the last line
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
        self._since, self._elsewhere = time.monotonic(), 0.0


def _opened(recipe: Recipe, texts: Path) -> Mixture:
    """The sources that the phases mix. Raises WorkError if one was not packed."""
    manifest = read_manifest(texts)
    mixed = sorted({name for phase in recipe.phases for name in phase.mixture})
    if missing := [name for name in mixed if name not in manifest]:
        raise WorkError(f"{', '.join(missing)} was not packed in {texts}: it holds another recipe's texts")
    return Mixture({name: PackedReader(texts / "shards" / name, manifest[name], verify=True) for name in mixed})


def _cut_lines_after(file: Path, step: int) -> None:
    """Drop lines of steps that will be done again."""
    if file.is_file():
        with file.open(encoding="utf-8") as lines:
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_atomically(file, "".join(kept).encode())


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT add to, so that a run ends after a step and not in it."""
    stop: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        stop.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
