"""The engine: one loop over mixed rows. `step` is the function to know by heart.

Single-threaded by design: everything here is called from one thread (see service.py). It knows no asyncio, no HTTP, no
Redis and no text: rows and prompts' tensors in, tokens and scores out.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.runner import Prefilled, PrefillItem
from app.engine.config import EngineConfig
from app.engine.prompts import ResidentPrompts
from app.engine.scheduler import Batch, Phase, Scheduler, Sequence
from app.engine.slots import SlotState
from app.engine.types import Capabilities, EngineStats, Event, FinishReason, Request

log = logging.getLogger(__name__)

# What a model may raise for one batch without the engine being broken.
_ROW_ERRORS = (RuntimeError, ValueError, IndexError, ArithmeticError)


class Engine:
    """Rows of any tasks, lengths and templates, answered by one frozen model."""

    def __init__(
        self, backbone: Backbone, config: EngineConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.max_context = min(config.max_context, backbone.max_positions)
        self.runner = backbone.runner(slots=config.max_rows, places=self.max_context)
        self.prompts = ResidentPrompts(
            device=backbone.device, dtype=backbone.dtype, budget_bytes=config.prompt_cache_bytes
        )
        self.scheduler = Scheduler(
            slots=config.max_rows,
            max_batch_tokens=config.max_batch_tokens,
            max_padding=config.max_padding,
            max_prefills_in_a_row=config.max_prefills_in_a_row,
        )
        self._state = SlotState(config.max_rows, backbone.device)
        self._ends = torch.tensor(backbone.tokenizer.eos_ids, dtype=torch.int64, device=backbone.device)
        self._family, self._clock = backbone.family, clock
        self._live: dict[str, Request] = {}
        self._deadlines: list[tuple[float, str]] = []  # a heap; ended requests leave it when their time comes
        self._cancelled: dict[str, FinishReason] = {}
        self._stats = EngineStats()

    def load(self, digest: str, vectors: Tensor) -> None:
        """Make a prompt's vectors [P, H] resident. Cheap when they are."""
        self.prompts.load(digest, vectors)

    def release(self, digest: str) -> None:
        self.prompts.release(digest)

    def submit(self, request: Request) -> None:
        """Queue a request whose prompt is resident. KeyError: an unknown digest; ValueError: it cannot fit."""
        if request.places > self.max_context:
            raise ValueError(f"{request.places} tokens exceed the context of {self.max_context}")
        if request.digest is not None:
            self.prompts.pin(request.digest)
        self._live[request.id] = request
        heapq.heappush(self._deadlines, (request.deadline, request.id))
        self.scheduler.add(request)

    def cancel(self, request_id: str, reason: FinishReason = "cancelled") -> None:
        """End a request before its next step; unknown and ended ones are ignored."""
        if request_id in self._live:
            self._cancelled[request_id] = reason

    @property
    def idle(self) -> bool:
        return not self._live

    def capabilities(self) -> Capabilities:
        return Capabilities(self._family, self.runner.name, self.max_context, prefix_reuse=self.runner.name == "fast")

    def stats(self) -> EngineStats:
        stats, prompts = self._stats, self.prompts
        stats.running, stats.waiting = len(self.scheduler.running), len(self.scheduler.waiting)
        stats.prefix_hits, stats.prefix_misses, stats.prefix_evictions = prompts.hits, prompts.misses, prompts.evictions
        stats.prefix_bytes, stats.resident_prompts = prompts.prefix_bytes, len(prompts)
        return stats

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Run one batch and return what became of its rows; empty when idle."""
        events = self._drop_ended()
        batch = self.scheduler.schedule()
        if batch is None:
            return events
        self._count(batch)
        run = self._prefill if batch.phase is Phase.PREFILL else self._decode
        return events + run(batch)

    @torch.inference_mode()
    def fail_all(self, message: str) -> list[Event]:
        """End every request with an error: the last resort when a step failed as a whole."""
        events = [self._end(request_id, "error", error=message) for request_id in list(self._live)]
        self.scheduler.waiting.clear()
        for slot in range(self.config.max_rows):
            self.runner.wipe(slot)
        self.scheduler.running.clear()
        return events

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()
        self.prompts.check_integrity()
        queued = {sequence.request.id for sequence in (*self.scheduler.running, *self.scheduler.waiting)}
        assert queued == set(self._live)

    # prefill

    def _prefill(self, batch: Batch) -> list[Event]:
        items = [self._item(sequence.request) for sequence in batch.sequences]
        try:
            done = self.runner.prefill(batch.start, items)
        except _ROW_ERRORS as error:
            return self._prefill_apart(batch, error)
        self._stats.prompt_tokens += done.tokens
        self._stats.padding_tokens += done.padding
        self._keep_prefixes(batch, items)
        return self._settle_prefill(batch, done)

    def _prefill_apart(self, batch: Batch, error: Exception) -> list[Event]:
        """A row that breaks its batch must break alone: run the halves by themselves."""
        rows = batch.sequences
        if len(rows) == 1:
            log.error("a row failed in prefill", extra={"request": rows[0].request.id, "error": repr(error)})
            self.runner.wipe(rows[0].slot)
            return [self._end(rows[0].request.id, "error", error="the model failed on this input")]
        half = len(rows) // 2
        events: list[Event] = []
        for part in (rows[:half], rows[half:]):
            for slot, sequence in enumerate(part, len(self.scheduler.running)):
                sequence.slot = slot
            events += self._prefill(Batch(Phase.PREFILL, len(self.scheduler.running), part))
        return events

    def _item(self, request: Request) -> PrefillItem:
        if request.digest is None:
            return PrefillItem(request.row, verbalizer=request.verbalizer)
        prefix = self.prompts.prefix(request.digest, request.row.prefix) if request.row.prefix else None
        return PrefillItem(request.row, self.prompts.vectors(request.digest), prefix, request.verbalizer)

    def _keep_prefixes(self, batch: Batch, items: list[PrefillItem]) -> None:
        """Keys and values of prompts that were computed in passing, for all rows to come."""
        fresh: dict[tuple[str, int], int] = {}
        for sequence, item in zip(batch.sequences, items, strict=True):
            if item.prefix is None and item.row.prefix and sequence.request.digest:
                fresh.setdefault((sequence.request.digest, item.row.prefix), sequence.slot)
        for (digest, length), slot in fresh.items():
            prefix = self.runner.read_prefix(slot, length)
            if prefix is not None and all(bool(torch.isfinite(t).all()) for layer in prefix.layers for t in layer):
                self.prompts.keep_prefix(digest, length, prefix)

    def _settle_prefill(self, batch: Batch, done: Prefilled) -> list[Event]:
        finite = torch.isfinite(done.logits).all(-1).tolist()
        events: list[Event] = []
        going: list[tuple[Sequence, int]] = []
        for i, sequence in enumerate(batch.sequences):
            scores = done.scores[i]
            if not finite[i]:
                self.runner.wipe(sequence.slot)
                events.append(self._end(sequence.request.id, "error", error="the model gave no finite numbers"))
            elif scores is not None:
                events.append(self._end(sequence.request.id, "label", scores=tuple(scores.tolist())))
            else:
                going.append((sequence, i))
        if going:
            logits = done.logits[[i for _, i in going]]
            events += self._start_decoding([sequence for sequence, _ in going], logits)
        return events

    def _start_decoding(self, sequences: list[Sequence], logits: Tensor) -> list[Event]:
        start = len(self.scheduler.running)
        for sequence, old in self.scheduler.start_decoding(sequences):
            self.runner.move(old, sequence.slot, sequence.length)
        sampling = [s.request.sampling for s in sequences if s.request.sampling is not None]
        self._state.open(start, [sequence.request.row.total for sequence in sequences], sampling)
        return self._advance(sequences, start, logits)

    # decode

    def _decode(self, batch: Batch) -> list[Event]:
        rows = list(batch.sequences)
        state, count = self._state, len(rows)
        longest = max(sequence.length for sequence in rows)
        logits = self.runner.decode(state.token[:count], state.length[:count], longest)
        state.length[:count] += 1
        return self._advance(rows, 0, logits)

    def _advance(self, rows: list[Sequence], start: int, logits: Tensor) -> list[Event]:
        """Sample one token for each row, in slots from `start` on, and settle the rows that end with it."""
        finite = torch.isfinite(logits).all(-1)
        tokens, ended, full = self._state.advance(start, logits.nan_to_num(), self._ends)
        verdicts = torch.stack((tokens, ended.long(), full.long(), finite.long())).tolist()
        events: list[Event] = []
        for sequence, token, is_end, is_full, is_finite in zip(rows, *verdicts, strict=True):
            sequence.generated += 1
            request_id = sequence.request.id
            if not is_finite:
                self.runner.wipe(sequence.slot)
                events.append(self._end(request_id, "error", error="the model gave no finite numbers"))
            elif is_end:
                events.append(self._end(request_id, "stop"))
            else:
                self._stats.generated_tokens += 1
                events.append(self._end(request_id, "length", token=token) if is_full else Event(request_id, token))
        for sequence in rows:
            if sequence.request.id not in self._live:
                self._free(sequence)
        return events

    # endings

    def _drop_ended(self) -> list[Event]:
        """End what was cancelled or ran out of time, before any further work is spent on it."""
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            if request_id in self._live:
                self._cancelled.setdefault(request_id, "timeout")
        if not self._cancelled:
            return []
        ended, self._cancelled = self._cancelled, {}
        self.scheduler.remove_waiting(set(ended))
        for sequence in [s for s in self.scheduler.running if s.request.id in ended]:
            self._free(sequence)
        return [self._end(request_id, reason) for request_id, reason in ended.items() if request_id in self._live]

    def _free(self, sequence: Sequence) -> None:
        moved = self.scheduler.finish(sequence)
        if moved is not None:
            last, old = moved
            self.runner.move(old, last.slot, last.length)
            self._state.move(old, last.slot)

    def _end(
        self,
        request_id: str,
        finish: FinishReason,
        *,
        token: int | None = None,
        scores: tuple[float, ...] | None = None,
        error: str | None = None,
    ) -> Event:
        request = self._live.pop(request_id)
        if request.digest is not None:
            self.prompts.unpin(request.digest)
        self._cancelled.pop(request_id, None)
        self._stats.finished[finish] = self._stats.finished.get(finish, 0) + 1
        return Event(request_id, token, scores, finish, error)

    def _count(self, batch: Batch) -> None:
        stats, rows = self._stats, len(batch.sequences)
        prompts = len({sequence.request.digest for sequence in batch.sequences})
        if batch.phase is Phase.DECODE:
            stats.steps_decode += 1
            stats.decode_rows.add(rows)
            stats.decode_prompts.add(prompts)
            return
        stats.steps_prefill += 1
        stats.prefill_rows.add(rows)
        stats.prefill_prompts.add(prompts)
        now = self._clock()
        for sequence in batch.sequences:
            if sequence.request.arrived is not None:
                stats.queue_seconds.add(now - sequence.request.arrived)
