"""Chorus on a GPU beside transformers' `generate`, and beside what the GPU can do at most.

    python -m benchmarks.gpu                      # both shapes of benchmarks/engine/models.py
    python -m benchmarks.gpu --model Qwen/Qwen3-4B  # or a folder

Same model, same requests, in one process, rounds interleaved. The bounds are measured in the same run: a decode step
cannot be faster than its weights are read, a prefill not faster than its products at the fastest rate seen for them.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from app.backbone.backbone import Backbone, BackboneConfig, load_backbone
from app.backbone.decoder import Decoder
from app.backbone.packed_runner import PackedRunner
from app.backbone.rows import Row
from app.backbone.runner import PrefillItem
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.types import Event, Request, RowRequest, Sampling
from benchmarks.engine.models import SHAPES, model_folder
from benchmarks.engine.peer_generate import BATCH, left_pad
from benchmarks.engine.workload import Ask, Task, Workload, every_task, make_asks, make_tasks, row_ids
from benchmarks.statistics import conditions

ROUNDS = 5
DECODE = ((1, 128), (1, 900), (8, 128), (64, 128), (64, 900))  # rows, tokens that each holds
PREFILL = (32, 128)  # rows, tokens of each
_STEPS = 20  # decode steps in one timing
_NEVER = 1e12  # a deadline


@dataclass(frozen=True)
class Product:
    """The work of one token: weights it is multiplied with, and the products of one layer as (inputs, outputs)."""

    layer_weights: int
    head_weights: int
    kv_bytes: int  # of one token, all layers
    attention: int  # floating-point operations for one key, all layers
    gemms: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, decoder: Decoder) -> Product:
        block, heads = decoder.blocks[0], decoder.memory(slots=1, places=1).heads
        shapes = [one.weight.shape for one in (block.qkv, block.attention_out, block.gate_up, block.down)]
        gemms = tuple((int(inputs), int(outputs)) for outputs, inputs in shapes)
        return cls(
            layer_weights=decoder.layers * sum(inputs * outputs for inputs, outputs in gemms),
            head_weights=decoder.vocabulary * gemms[0][0],
            kv_bytes=2 * decoder.layers * heads.groups * heads.width * decoder.dtype.itemsize,
            attention=4 * decoder.layers * heads.queries * heads.width,
            gemms=gemms,
        )


class Clock:
    """Seconds on a device: work that was only launched does not count as done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def seconds(self, run: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def median(self, run: Callable[[], object], *, calls: int = 1) -> float:
        """Of a few timings, each of several calls, after two that do not count."""
        for _ in range(2):
            run()
        return median(self.seconds(lambda: [run() for _ in range(calls)]) / calls for _ in range(ROUNDS))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def bounds(decoder: Decoder, product: Product, clock: Clock) -> dict[str, float]:
    """`copy`: bytes/s read and written by a copy beyond all caches; `gemm`: FLOP/s over the products of one layer, with
    as many tokens as the prefill has."""
    size = 1 << (30 if decoder.device.type == "cuda" else 27)
    source = torch.zeros(size, dtype=torch.uint8, device=decoder.device)
    target = torch.empty_like(source)
    copied = clock.median(lambda: target.copy_(source), calls=5)
    rows, seconds = PREFILL[0] * PREFILL[1], 0.0
    for inputs, outputs in product.gemms:
        x = torch.randn(rows, inputs, device=decoder.device).to(decoder.dtype)
        weight = torch.randn(outputs, inputs, device=decoder.device).to(decoder.dtype)
        seconds += clock.median(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight), calls=5)  # type: ignore[misc]
    flops = 2 * rows * product.layer_weights / decoder.layers
    return {"copy": 2 * size / copied, "gemm": flops / seconds}


def decode_steps(decoder: Decoder, product: Product, clock: Clock, copy: float) -> Iterator[dict[str, float]]:
    """Steps of rows of equal length: seconds of each, and of reading its weights, and these with keys and values."""
    for rows, length in DECODE:
        runner = PackedRunner(decoder, slots=rows, places=1024)
        tokens = torch.ones(rows, dtype=torch.int64, device=decoder.device)
        lengths = torch.full_like(tokens, length)

        def step(runner=runner, tokens=tokens, lengths=lengths, length=length) -> None:
            runner.decode(tokens, lengths, length)

        weights = (product.layer_weights + product.head_weights) * decoder.dtype.itemsize / copy
        keys = rows * (length + 1) * product.kv_bytes / copy
        taken = clock.median(step, calls=_STEPS)
        yield {"rows": rows, "length": length, "seconds": taken, "weights": weights, "all": weights + keys}


def prefill(decoder: Decoder, product: Product, clock: Clock, gemm: float) -> dict[str, float]:
    """Texts without prompts: seconds, and seconds of its arithmetic at the rate of its products."""
    rows, length = PREFILL
    runner = PackedRunner(decoder, slots=rows, places=length + 1)
    items = [PrefillItem(Row(tuple((7 * i + j) % 1000 for j in range(length)))) for i in range(rows)]
    keys = rows * length * (length + 1) // 2
    flops = 2 * rows * (length * product.layer_weights + product.head_weights) + keys * product.attention
    return {"seconds": clock.median(lambda: runner.prefill(0, items)), "arithmetic": flops / gemm}


class Contest:
    """One model answering the same requests through the engine and through `generate` in static batches."""

    def __init__(self, backbone: Backbone, work: Workload, clock: Clock) -> None:
        self.backbone, self.work, self._clock = backbone, work, clock
        vocabulary, hidden = backbone.vocab_size, backbone.hidden_size
        self.tasks: list[Task] = make_tasks(work, hidden=hidden, vocabulary=vocabulary)
        self._table = [task.vectors.to(backbone.device, backbone.dtype) for task in self.tasks]
        longest = work.prompt[1] + work.text[1] + work.new_tokens + 1
        self.engine = Engine(
            backbone,
            EngineConfig(max_rows=64, max_context=longest, prompt_cache_bytes=2 << 30, prompt_vector_bytes=512 << 20),
        )
        for task in self.tasks:
            self.engine.load(task.digest, task.vectors)
        self._sent = 0

    def rounds(self, requests: int) -> dict[str, float]:
        """Requests a second, medians over rounds with fresh texts; the ratio is the median of each round's."""
        warm = every_task(self.work, self.tasks, vocabulary=self.backbone.vocab_size, turn=0, at_least=2 * BATCH)
        for _ in range(2):  # every prompt and every shape of step
            self.ours(warm)
            self.theirs(warm)
        taken = []
        for turn in range(ROUNDS):
            asks = make_asks(self.work, self.tasks, vocabulary=self.backbone.vocab_size, turn=turn + 1, count=requests)
            sides = [lambda asks=asks: self.ours(asks), lambda asks=asks: self.theirs(asks)]
            order = [0, 1] if turn % 2 else [1, 0]
            found = {side: self._clock.seconds(sides[side]) for side in order}
            taken.append((requests / found[0], requests / found[1]))
        ours, theirs = (median(side) for side in zip(*taken, strict=True))
        return {"chorus": ours, "generate": theirs, "ratio": median(a / b for a, b in taken)}

    def ours(self, asks: Sequence[Ask]) -> list[list[int]]:
        names = [self._submit(ask) for ask in asks]
        events: dict[str, list[Event]] = defaultdict(list)
        while not self.engine.idle:
            for event in self.engine.step():
                events[event.request_id].append(event)
        answers = [[event.token for event in events[name] if event.token is not None] for name in names]
        if any(len(answer) != self.work.new_tokens for answer in answers):
            raise RuntimeError("a request ended early")
        return answers

    @torch.inference_mode()
    def theirs(self, asks: Sequence[Ask]) -> list[list[int]]:
        answers: list[list[int]] = []
        for first in range(0, len(asks), BATCH):
            embeds, mask = left_pad([self._embeds(ask) for ask in asks[first : first + BATCH]])
            out = self.backbone.model.generate(
                inputs_embeds=embeds,
                attention_mask=mask.to(embeds.device),
                max_new_tokens=self.work.new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            answers += out.tolist()
        return answers

    def _submit(self, ask: Ask) -> str:
        task = self.tasks[ask.task]
        row = Row(row_ids(self.work, task, ask), task.size)
        self._sent += 1
        request = RowRequest(row, task.digest, Sampling(max_tokens=self.work.new_tokens), None)
        self.engine.submit(Request(str(self._sent), (request,), _NEVER))
        return str(self._sent)

    def _embeds(self, ask: Ask) -> Tensor:
        ids = torch.tensor(ask.ids, device=self.backbone.device)
        return torch.cat((self._table[ask.task], self.backbone.embedding_weight[ids]))


def measure(name: str, device: str, *, dtype: str, work: Path, requests: int) -> dict[str, Any]:
    """All figures of one model: a shape of benchmarks/engine/models.py, a folder, or a name on the hub."""
    shape = SHAPES.get(name)
    source = str(model_folder(work, name)) if shape else name
    kept = shape.dtype if shape and dtype == "auto" else dtype
    backbone = load_backbone(BackboneConfig(source=source, device=device, dtype=kept))
    backbone.tokenizer.eos_ids = ()  # every text runs to its length, here as in `generate` below
    decoder = backbone.probed.decoder
    if decoder is None:
        raise SystemExit(f"{name} is not served by the packed runner, which is what this measures")
    product, clock = Product.of(decoder), Clock(decoder.device)
    with torch.inference_mode():
        most = bounds(decoder, product, clock)
        steps = list(decode_steps(decoder, product, clock, most["copy"]))
        first = prefill(decoder, product, clock, most["gemm"])
    contests = {}
    for size in (20, 100):
        workload = Workload(prompt=(size, size), new_tokens=64)
        contest = Contest(backbone, workload, clock)
        contests[size] = contest.rounds(requests)
        del contest  # its slots, before the next one takes its own
    return {
        "model": name,
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "bounds": most,
        "decode": steps,
        "prefill": first,
        "contests": contests,
    }


def render(parts: Sequence[dict[str, Any]], device: str) -> str:
    rows, length = PREFILL
    lines = [
        "# On a GPU",
        "",
        f"`make bench-gpu` on {device}. {conditions()}.",
        f"Medians of {ROUNDS}. Models without a download have random weights: speed does not depend on what they say.",
    ]
    for part in parts:
        most, first = part["bounds"], part["prefill"]
        lines += [
            "",
            f"## {part['model']}, {part['dtype']}",
            "",
            f"A copy moves {most['copy'] / 1e9:,.0f} GB/s (read and written); the products of a layer with "
            f"{rows * length:,} tokens run at {most['gemm'] / 1e12:,.1f} TFLOP/s.",
            "",
            "| one decode step | took | weights alone, at that rate | share | with keys and values |",
            "|---|---|---|---|---|",
        ]
        for step in part["decode"]:
            took, weights, together = (1000 * step[key] for key in ("seconds", "weights", "all"))
            lines.append(
                f"| {step['rows']} rows of {step['length']} tokens | {took:.2f} ms | {weights:.2f} ms "
                f"| **{weights / took:.0%}** | {together / took:.0%} |"
            )
        share = first["arithmetic"] / first["seconds"]
        lines += [
            "",
            f"Prefill of {rows} texts of {length} tokens: {1000 * first['seconds']:.1f} ms; its arithmetic at the rate "
            f"of its products {1000 * first['arithmetic']:.1f} ms, **{share:.0%}**.",
            "",
            f"| requests a second: 8 tasks, 24–48 text tokens, 64 new | Chorus | `generate`, batches of {BATCH} | |",
            "|---|---|---|---|",
        ]
        for size, found in part["contests"].items():
            lines.append(
                f"| P = {size} | {found['chorus']:.1f} | {found['generate']:.1f} | **{found['ratio']:.2f}×** |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", action="append", help="tiny, 0.5b, a folder or a hub name; may be repeated")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cuda", help="cpu only shows that this runs")
    parser.add_argument("--requests", type=int, default=256, help="in one round")
    parser.add_argument("--work", type=Path, default=Path(".peers/work"), help="folder for the models made here")
    parser.add_argument("--write", type=Path, help="page to write")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: not measured")
        return
    parts = [
        measure(
            name,
            arguments.device,
            dtype=arguments.dtype,
            work=arguments.work,
            requests=arguments.requests,
        )
        for name in arguments.model or ("tiny", "0.5b")
    ]
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "no GPU: figures of a trial on the CPU"
    page = render(parts, device)
    print(page)
    if arguments.write and arguments.device == "cuda":
        arguments.write.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
