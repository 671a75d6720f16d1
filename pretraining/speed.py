"""How fast a shape trains here: `python -m pretraining.speed 256x8 320x10 --length 256 --compile`.

The same step as the trainer's, forward, backward and both optimizers, on random ids; the median of a few steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from torch import Tensor

from pretraining.objectives.causal import Causal
from pretraining.optimizer import make_optimizers
from pretraining.recipe import Recipe, recipe_from
from pretraining.tokenizer import BOS

DOCUMENT = 48  # tokens: about what an exercise has


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pretraining.speed", description=__doc__)
    parser.add_argument("shapes", nargs="+", help="HIDDENxLAYERS, heads of 64")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8192, help="in a batch")
    parser.add_argument("--steps", type=int, default=6, help="timed steps; two more come before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--attention", default="sdpa", help="sdpa or eager")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for shape in arguments.shapes:
        hidden, layers = map(int, shape.split("x"))
        recipe = _recipe(hidden, layers, arguments.vocabulary, arguments.length, arguments.attention)
        rows = arguments.tokens // arguments.length
        parameters, seconds, optimizing = _measure(recipe, rows, arguments.steps, compiled=arguments.compile)
        print(  # noqa: T201  what this command is for
            f"{shape}, vocabulary {arguments.vocabulary}, {rows} x {arguments.length}, "
            f"{'compiled' if arguments.compile else 'not compiled'}, {arguments.attention} attention, "
            f"{arguments.threads} threads: "
            f"{parameters / 1e6:.1f} M parameters, {rows * arguments.length / seconds:,.0f} tokens/s, "
            f"{seconds:.2f} s a step, {optimizing:.2f} s of it in the optimizers",
            flush=True,
        )


def _measure(recipe: Recipe, rows: int, steps: int, *, compiled: bool) -> tuple[int, float, float]:
    """(parameters, seconds a step, seconds of it in the optimizers)."""
    shape, vocabulary = recipe.shape, recipe.tokenizer.vocabulary
    model = Causal.new_model(recipe, vocabulary)
    optimizers = make_optimizers(model, recipe.train).values()
    compute = torch.compile(Causal.losses, dynamic=False) if compiled else Causal.losses
    whole, optimizing = [], []
    for _ in range(steps + 2):
        ids, weights, answers = _batch(rows, shape.context, vocabulary)
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            compute(model, ids[:, :-1], ids[:, 1:], weights, answers).total.backward()
        middle = time.perf_counter()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        end = time.perf_counter()
        whole.append(end - begin)
        optimizing.append(end - middle)
    return sum(one.numel() for one in model.parameters()), *map(statistics.median, (whole[2:], optimizing[2:]))


def _batch(rows: int, length: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(BOS + 1, vocabulary, (rows, length + 1))
    ids[:, ::DOCUMENT] = BOS
    weights = torch.ones(rows, length)
    return ids, weights, torch.zeros(rows, length, dtype=torch.bool)


def _recipe(hidden: int, layers: int, vocabulary: int, length: int, attention: str) -> Recipe:
    """A recipe of that shape and no text."""
    return recipe_from(
        {
            "name": "speed", "seed": 0, "held_out": [],
            "tokenizer": {"vocabulary": vocabulary, "sample_chars": 0},
            "shape": {
                "hidden": hidden, "layers": layers, "heads": hidden // 64,
                "feed_forward": round(hidden * 2.7 / 32) * 32, "context": length,
            },
            "sources": {"none": {"file": "none"}},
            "phases": [{"until": 1.0, "rows": 1, "length": length, "answer_weight": 1.0, "task_weight": 1.0,
                        "mixture": {"none": 1.0}}],
            "train": {"steps": 1000, "attention": attention},
        }
    )  # fmt: skip


if __name__ == "__main__":
    main()
