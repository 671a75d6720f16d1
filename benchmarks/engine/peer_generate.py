"""transformers alone: `generate` one request after another, and in static batches of 32 through `inputs_embeds`.

Also the reference that greedy tokens are compared with: one row at a time, no padding, the model's own forward.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.engine import wire
from benchmarks.engine.peer import BasePeer, read_last_rows_well
from benchmarks.engine.workload import Ask, row_embeddings

BATCH = 32


class GeneratePeer(BasePeer):
    """`how`: `single` or `static`."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self.shape.torch_dtype, trust_remote_code=False
        )
        self.model.eval().requires_grad_(False)
        read_last_rows_well(self.model)

    def warm_up(self) -> None:
        asks = self.every_task(0, BATCH)[:BATCH]
        self.answer(self.inputs(asks, "static"), "static")
        self.answer(self.inputs(asks[:2], "single"), "single")

    def inputs(self, asks: Sequence[Ask], how: str) -> list[list[Tensor]]:
        """Batches of embeddings [T, H]."""
        weight = self.model.get_input_embeddings().weight
        rows = [row_embeddings(self.work, self.tasks[ask.task], ask, weight) for ask in asks]
        return [list(part) for part in wire.chunks(rows, BATCH if how == "static" else 1)]

    @torch.inference_mode()
    def answer(self, inputs: list[list[Tensor]], how: str) -> list[Any]:
        return [answer for rows in inputs for answer in self._batch(rows)]

    @torch.inference_mode()
    def reference(self, turn: int, count: int, slot: str = "") -> dict[str, Any]:
        """Answers one by one, with the gap between the best and the second logit at each token."""
        self._use(slot)
        answers, margins = [], []
        for [row] in self.inputs(self.asks(turn, count), "single"):
            logits = self._logits([row]) if self.work.kind == "labels" else self._generate([row], scores=True)
            best = torch.topk(logits.float(), 2, dim=-1)  # [new, 2]
            margins.append((best.values[:, 0] - best.values[:, 1]).tolist())
            answers.append(best.indices[:, 0].tolist() if self.work.kind == "generate" else int(best.indices[0, 0]))
        return {"answers": answers, "margins": margins}

    @torch.inference_mode()
    def alone(self, turn: int, count: int, slot: str = "") -> dict[str, Any]:
        """Requests one after another: seconds to the first token, and for each later one."""
        self._use(slot)
        first, per_token = [], []
        for [row] in self.inputs(self.asks(turn, count), "single"):
            clock = _Clock()
            began = time.perf_counter()
            self._generate([row], streamer=clock)
            times = clock.times[-self.new_tokens :]
            first.append(times[0] - began)
            per_token.append((times[-1] - times[0]) / (len(times) - 1))
        return {"first_s": first, "per_token_s": per_token}

    def _batch(self, rows: list[Tensor]) -> list[Any]:
        self.batches.append(len(rows))
        if self.work.kind == "labels":
            return self._logits(rows).argmax(-1).tolist()
        return self._generate(rows).tolist()

    def _logits(self, rows: list[Tensor]) -> Tensor:
        """Logits of the labels' words [B, K] after each row: one forward, one position of logits."""
        embeds, mask = left_pad(rows)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = self.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
        )
        logits: Tensor = out.logits
        return logits[:, -1, self.labels]

    def _generate(self, rows: list[Tensor], *, scores: bool = False, streamer: Any = None) -> Tensor:
        """New tokens [B, new]; with `scores`, logits [new, V] of a single row."""
        embeds, mask = left_pad(rows)
        out = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=self.new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            streamer=streamer,
            output_logits=scores,
            return_dict_in_generate=scores,
        )
        return torch.cat(out.logits) if scores else out


class _Clock:
    """A streamer that only looks at the clock."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def left_pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(embeddings [B, T, H], mask [B, T])"""
    embeds = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], True, 0, "left")
    return embeds, mask


if __name__ == "__main__":
    wire.serve(GeneratePeer(wire.arguments()), {"versions": {"transformers": transformers.__version__}})
