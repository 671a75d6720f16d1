"""Chorus' engine, driven directly: requests in, events out, no HTTP and no second thread."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.backbone.backbone import make_tokenizer, wrap_model
from app.backbone.freed_memory import give_back_freed_memory
from app.backbone.rows import Row
from app.backbone.verbalizer import Verbalizer
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.types import Event, Request, RowRequest, Sampling
from benchmarks.engine import wire
from benchmarks.engine.models import CONTEXT
from benchmarks.engine.peer import BasePeer
from benchmarks.engine.resident import resident_bytes, slot_tensors
from benchmarks.engine.workload import Ask, row_ids

_NEVER = 1e12  # a deadline


class ChorusPeer(BasePeer):
    """`options`: `rows` at once, `context` tokens of each at most, `prompt_cache_mib` for prompts' keys and values."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.shape.torch_dtype, trust_remote_code=False)
        tokenizer = make_tokenizer(AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False), model)
        backbone = wrap_model(model, tokenizer, name=self.shape.name, identity="0" * 64).for_serving()
        config = EngineConfig(
            max_rows=options["rows"],
            max_context=options.get("context", CONTEXT),
            prompt_cache_bytes=options["prompt_cache_mib"] << 20,
            prompt_vector_bytes=512 << 20,
        )
        self.engine = Engine(backbone, config)
        self._sent = 0

    def warm_up(self) -> None:
        for task in self.tasks:
            if task.size:
                self.engine.load(task.digest, task.vectors)
        names = tuple(str(i) for i in range(len(self.labels)))
        ids = tuple(((token,),) for token in self.labels)
        self._verbalizer = Verbalizer(names, tuple((name,) for name in names), ids, terminated=False)
        super().warm_up()

    def inputs(self, asks: Sequence[Ask], how: str) -> list[Request]:
        return [self._request(ask) for ask in asks]

    def _request(self, ask: Ask) -> Request:
        labels = self.work.kind == "labels"
        sampling = None if labels else Sampling(max_tokens=self.new_tokens)
        tasks = [self.tasks[task] for task in ask.tasks]
        rows = tuple(
            RowRequest(
                Row(row_ids(self.work, task, ask), 0 if self.work.suffix else task.size + len(task.before)),
                task.digest if task.size else None,
                sampling,
                self._verbalizer if labels else None,
            )
            for task in tasks
        )
        self._sent += 1
        shared = len(ask.ids) if self.work.suffix and len(rows) > 1 else 0
        return Request(str(self._sent), rows, _NEVER, shared=shared, coupled=self.work.coupled)

    def answer(self, inputs: list[Request], how: str) -> list[Any]:
        events: dict[tuple[str, int], list[Event]] = defaultdict(list)
        for request in inputs:
            self.engine.submit(request)
        while not self.engine.idle:
            for event in self.engine.step():
                events[event.request_id, event.row].append(event)
        answers = []
        for request in inputs:
            views = [settled(events[request.id, row]) for row in range(len(request.rows))]
            answers.append(views[0] if len(views) == 1 or request.coupled else views)
        return answers

    def alone(self, turn: int, count: int, slot: str = "") -> dict[str, Any]:
        self._use(slot)
        first, per_token = [], []
        for request in self.inputs(self.asks(turn, count), ""):
            times = []
            began = time.perf_counter()
            self.engine.submit(request)
            while not self.engine.idle:
                times += [time.perf_counter() for event in self.engine.step() if event.token is not None]
            first.append(times[0] - began)
            per_token.append((times[-1] - times[0]) / (len(times) - 1))
        return {"first_s": first, "per_token_s": per_token}

    def statistics(self) -> dict[str, Any]:
        """The engine's own counters: padding, cache hits, steps. Memory is then that of a server at rest: its thread
        hands freed memory back after a few seconds without work."""
        give_back_freed_memory()
        stats = self.engine.stats()
        slots = slot_tensors(self.engine.runner)
        return {
            "runner": self.engine.runner.name,
            "padding": stats.padding_tokens / max(1, stats.padding_tokens + stats.prompt_tokens),
            "slot_bytes": sum(tensor.nbytes for tensor in slots),
            "slot_bytes_resident": sum(map(resident_bytes, slots)),
            "prefix_hits": stats.prefix_hits,
            "prefix_misses": stats.prefix_misses,
            "prefix_bytes": stats.prefix_bytes,
        }


def settled(events: list[Event]) -> Any:
    """The answer of one row, from its events."""
    last = events[-1]
    if last.finish not in ("length", "label"):
        raise RuntimeError(f"a request ended as {last.finish}: {last.error}")
    if last.scores is not None:
        return max(range(len(last.scores)), key=last.scores.__getitem__)
    return [event.token for event in events if event.token is not None]


if __name__ == "__main__":
    wire.serve(ChorusPeer(wire.arguments()), {"versions": {"torch": torch.__version__}})
