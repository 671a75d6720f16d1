"""The engine: one loop over mixed rows. `step` is the function to know by heart.

Single-threaded by design: everything here is called from one thread (see service.py). It knows no asyncio, no HTTP, no
Redis and no text: rows and prompts' tensors in, tokens and scores out.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType

import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.soft_prompt import SoftPrompt
from app.engine.config import EngineConfig
from app.engine.groups import Group
from app.engine.groups import Sequence as Row
from app.engine.isolation import IsolatingRunner
from app.engine.prefill import Prefiller
from app.engine.prompts import ResidentPrompts
from app.engine.scheduler import Batch, Phase, Scheduler
from app.engine.slots import Lineup, SlotState
from app.engine.types import Capabilities, EngineStats, Event, FinishReason, Request, View

_NONE: Mapping[str, Tensor] = MappingProxyType({})
ROW_FAILED = "the model failed on this row"


class Engine:
    """Rows of any tasks, lengths and templates, answered by one frozen model."""

    def __init__(
        self, backbone: Backbone, config: EngineConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.max_context = min(config.max_context, backbone.max_positions)
        # One slot more than rows: where rows change places when a batch has to be taken apart.
        self.runner = backbone.runner(slots=config.max_rows + 1, places=self.max_context)
        self.prompts = ResidentPrompts(
            device=backbone.device,
            dtype=backbone.dtype,
            budget_bytes=config.prompt_cache_bytes,
            vector_bytes=config.prompt_vector_bytes,
        )
        self.scheduler = Scheduler(
            slots=config.max_rows,
            max_batch_tokens=config.max_batch_tokens,
            max_padding=config.max_padding,
            max_prefills_in_a_row=config.max_prefills_in_a_row,
            packed=getattr(self.runner, "packed", False),
            shares_text=getattr(self.runner, "shares_text", False),
        )
        vocabulary = backbone.model.get_output_embeddings().weight.shape[0]
        self._isolating = IsolatingRunner(self.runner, vocabulary=vocabulary, device=backbone.device)
        self._prefiller = Prefiller(self._isolating, self.runner, self.prompts)
        self._state = SlotState(config.max_rows, backbone.device)
        self._lineup: Lineup | None = None  # of the running rows; None after some came or went
        self._longest = 0
        self._ends = frozenset(backbone.tokenizer.eos_ids)
        self._device, self._family, self._clock = backbone.device, backbone.family, clock
        self._live: dict[str, Group] = {}
        self._impatient = 0  # of the live ones
        self._phase: Phase | None = None  # of the last step
        self._deadlines: list[tuple[float, str]] = []  # a heap; ended requests leave it when their time comes
        self._cancelled: dict[str, FinishReason] = {}
        self._ending: list[Event] = []  # endings of the step at hand: whatever breaks it, they are told
        self._stats = EngineStats()

    def load(self, digest: str, prompt: SoftPrompt) -> None:
        """Make a prompt resident. Cheap when it is."""
        self.prompts.load(digest, prompt)

    def release(self, digest: str) -> None:
        self.prompts.release(digest)

    def submit(self, request: Request, prompts: Mapping[str, SoftPrompt] = _NONE) -> None:
        """Queue a request whose prompts are resident, or among `prompts`, by digest.

        Raises:
            KeyError: an unknown digest.
            ValueError: a request that cannot fit.
        """
        request.check(places=self.max_context, slots=self.config.max_rows)
        with ExitStack() as undo:
            for digest in [row.digest for row in request.rows if row.digest is not None]:
                if digest in prompts:
                    self.prompts.load(digest, prompts[digest])
                self.prompts.pin(digest)
                undo.callback(self.prompts.unpin, digest)
            undo.pop_all()
        self._live[request.id] = self.scheduler.add(request)
        self._impatient += not request.patient
        heapq.heappush(self._deadlines, (request.deadline, request.id))

    def cancel(self, request_id: str, reason: FinishReason = "cancelled") -> None:
        """End a request before its next step; unknown and ended ones are ignored."""
        if request_id in self._live:
            self._cancelled[request_id] = reason

    @property
    def idle(self) -> bool:
        return not self._live

    @property
    def shares_text(self) -> bool:
        """Whether text that rows of a group begin with is computed once."""
        return self.scheduler.packed or self.scheduler.shares_text

    def capabilities(self) -> Capabilities:
        return Capabilities(
            family=self._family,
            runner=self.runner.name,
            max_context=self.max_context,
            prefix_reuse=self._family == "causal" and self.runner.name != "reference",
            generation=self._family != "masked",
            coupled_rows=self.config.max_rows,
        )

    def stats(self) -> EngineStats:
        stats, prompts, waiting = self._stats, self.prompts, self.scheduler.waiting
        stats.running, stats.waiting, stats.waiting_tokens = len(self.scheduler.running), waiting.rows, waiting.tokens
        stats.prefix_hits, stats.prefix_misses, stats.prefix_evictions = prompts.hits, prompts.misses, prompts.evictions
        stats.prefix_bytes, stats.resident_bytes = prompts.prefix_bytes, prompts.vector_bytes
        stats.resident_prompts = len(prompts)
        return stats

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Run one batch and return what became of its rows; empty when idle."""
        events = self._drop_ended()
        batch = self.scheduler.schedule()
        self._phase = None if batch is None else batch.phase
        if batch is not None:
            events += self._prefill(batch) if batch.phase is Phase.PREFILL else self._decode(batch)
        self._ending.clear()
        return events

    def may_wait(self, events: Sequence[Event]) -> bool:
        """Whether nobody needs the last step's events before later ones: they are tokens behind a first one, of rows
        whose callers read nothing before the end."""
        patient = self._phase is Phase.DECODE and not self._impatient
        return patient and all(event.finish is None for event in events)

    @torch.inference_mode()
    def fail_all(self, message: str) -> list[Event]:
        """End every request with an error: the last resort when a step failed as a whole. Rows that ended in that step
        before it failed keep their ending."""
        for group in list(self._live.values()):
            self._end_all(group, "error", message)
        events, self._ending = self._ending, []
        self.scheduler.waiting.clear()
        self.scheduler.running.clear()
        self._lineup = None
        for slot in range(self.runner.slots):
            self.runner.wipe(slot)
        return events

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()
        self.prompts.check_integrity()
        waiting = [row for group in self.scheduler.waiting for row in group.waiting]
        assert not any(row.ended for row in (*self.scheduler.running, *waiting))
        queued = [row.request_id for row in (*self.scheduler.running, *waiting)]
        assert self._impatient == sum(not group.request.patient for group in self._live.values())
        assert Counter(queued) == {name: group.open for name, group in self._live.items()}
        digests = [row.row.digest for group in self._live.values() for row in group.sequences if not row.ended]
        assert self.prompts.pins == Counter(digest for digest in digests if digest is not None)

    # prefill

    def _prefill(self, batch: Batch) -> list[Event]:
        began = self._clock()
        done = self._prefiller.run(batch)
        self._count_prefill(batch, done.tokens, done.padding, began)
        failed = _with_their_groups([row for row, ok in zip(batch.sequences, done.finite, strict=True) if not ok])
        events: list[Event] = []
        going: list[int] = []
        for i, row in enumerate(batch.sequences):
            scores = done.scores[i]
            if row in failed:
                self.runner.wipe(row.slot)
                events.append(self._end(row, "error", error=ROW_FAILED))
            elif scores is not None:
                events.append(self._end(row, "label", scores=scores))
            else:
                going.append(i)
        if going:
            rows = [batch.sequences[i] for i in going]
            logits = done.logits if len(rows) == len(batch.sequences) else done.logits[going]
            events += self._start_decoding(rows, logits)
        return [event._replace(began=began) for event in events]

    def _start_decoding(self, rows: list[Row], logits: Tensor) -> list[Event]:
        start = len(self.scheduler.running)
        for row, old in self.scheduler.start_decoding(rows):
            self.runner.move(old, row.slot, row.length)
        self._state.open(start, rows)
        self._lineup = None
        return self._advance(rows, start, logits, Lineup.of(rows, self._device))

    # decode

    def _decode(self, batch: Batch) -> list[Event]:
        state, count = self._state, len(batch.sequences)
        if self._lineup is None:
            self._lineup = Lineup.of(batch.sequences, self._device)
            self._longest = self._lineup.longest
        self._stats.steps_decode += 1
        self._stats.decode_rows.add(count)
        self._stats.decode_prompts.add(self._lineup.prompts)
        logits = self._isolating.decode(state.token[:count], state.length[:count], self._longest)
        state.length[:count] += 1
        self._longest += 1
        return self._advance(batch.sequences, 0, logits, self._lineup)

    def _advance(self, rows: Sequence[Row], start: int, logits: Tensor, lineup: Lineup) -> list[Event]:
        """Choose one token for each row, in slots from `start` on, and settle the rows that end with it."""
        tokens, views = self._state.advance(start, logits, lineup)
        failed = _with_their_groups([row for row, token in zip(rows, tokens, strict=True) if token < 0])
        events, ended = [], []
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.generated += 1
            if failed and row in failed:
                self.runner.wipe(row.slot)
                events.append(self._end(row, "error", error=ROW_FAILED))
            elif token in self._ends:
                events.append(self._end(row, "stop", view=views.get(i)))
            elif row.generated == row.most:
                events.append(self._end(row, "length", token=token, view=views.get(i)))
            else:
                events.append(Event(row.request_id, token, row=row.index, view=views.get(i)))
                continue
            ended.append(row)
        self._stats.generated_tokens += sum(event.token is not None for event in events)
        for row in ended:
            self._free(row)
        return events

    # endings

    def _drop_ended(self) -> list[Event]:
        """End what was cancelled or ran out of time, before any further work is spent on it."""
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            if request_id in self._live:
                self._cancelled.setdefault(request_id, "timeout")
        ended, self._cancelled = self._cancelled, {}
        events: list[Event] = []
        for request_id, reason in ended.items():
            group = self._live.get(request_id)
            if group is not None:
                self.scheduler.waiting.remove(group)
                for row in [row for row in group.sequences if row.slot >= 0 and not row.ended]:
                    self._free(row)
                events += self._end_all(group, reason)
        return events

    def _free(self, row: Row) -> None:
        self._lineup = None
        moved = self.scheduler.finish(row)
        if moved is not None:
            last, old = moved
            self.runner.move(old, last.slot, last.length)
            self._state.move(old, last.slot)

    def _end_all(self, group: Group, finish: FinishReason, error: str | None = None) -> list[Event]:
        return [self._end(row, finish, error=error) for row in group.sequences if not row.ended]

    def _end(
        self,
        row: Row,
        finish: FinishReason,
        *,
        token: int | None = None,
        scores: tuple[float, ...] | None = None,
        error: str | None = None,
        view: View | None = None,
    ) -> Event:
        row.ended = True
        row.group.open -= 1
        if not row.group.open:
            del self._live[row.request_id]
            self._impatient -= not row.group.request.patient
        if row.row.digest is not None:
            self.prompts.unpin(row.row.digest)
        self._stats.finished[finish] = self._stats.finished.get(finish, 0) + 1
        event = Event(row.request_id, token, scores, finish, error, row.index, view)
        self._ending.append(event)
        return event

    def _count_prefill(self, batch: Batch, tokens: int, padding: int, began: float) -> None:
        stats, seconds = self._stats, self._clock() - began
        stats.steps_prefill += 1
        stats.prompt_tokens += tokens
        stats.padding_tokens += padding
        stats.prefill_rows.add(len(batch.sequences))
        stats.prefill_prompts.add(len({row.row.digest for row in batch.sequences}))
        for row in batch.sequences:
            stats.prefill_seconds.add(seconds)
            if row.group.request.arrived is not None:
                stats.queue_seconds.add(began - row.group.request.arrived)


def _with_their_groups(rows: list[Row]) -> set[Row]:
    """Rows that failed, and every row that is coupled to one of them."""
    return {other for row in rows for other in (row.group.sequences if row.group.coupled else [row])}
