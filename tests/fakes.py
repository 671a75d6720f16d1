"""An engine and a backbone without a model, for tests of what stands around them."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI

from app.api.body import EdgeLimits
from app.backbone import LoadedPrompt, Verbalizer, parse_template
from app.engine import Answer, Ask, Coupled, EngineStats, StreamEvent, Usage
from app.engine.answers import label_answer
from app.errors import (
    ChorusError,
    ContextTooLong,
    CutOff,
    DeadlineExceeded,
    EngineFailure,
    Overloaded,
    RequestCancelled,
)
from app.main import create_app
from app.settings import Settings
from app.training import JobStore
from prompt_store import BackboneRef, BlobStore, Decoding, MemoryMetadata, PromptMeta, PromptStore, TaskSpec

_numbers = itertools.count()
SECRET = "/srv/secret/model.bin"  # what an error's own text may hold and a caller may never see


def fake_prompt(version: int, *, verbalizer: Verbalizer | None = None) -> LoadedPrompt:
    """A hand-written prompt of the task `mood`; each version has a digest of its own."""
    return LoadedPrompt(
        task="mood",
        version=version,
        digest=f"{version:064x}",
        template=parse_template("{text}"),
        bos="none",
        learned=None,
        verbalizer=verbalizer,
        decoding=Decoding(),
        golden=(),
    )


@dataclass
class FakeBackbone:
    """As much of a backbone as the registry and `app.main` ask for."""

    name: str = "fake-1m"
    fingerprint: str = "f" * 64
    family: str = "causal"
    hidden_size: int = 4
    vocab_size: int = 100
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    runner_name: str = "fast"
    embedding_weight: torch.Tensor = field(default_factory=lambda: torch.ones(100, 4))

    @property
    def ref(self) -> BackboneRef:
        return BackboneRef(name=self.name, fingerprint=self.fingerprint, hidden_size=self.hidden_size)


class FakeEngineService:
    """Label tasks answer their first label, others repeat their input word by word. `views` has other probabilities of
    a version's labels, for every input or for one, and `texts` what else a version writes. The input `!overloaded` and
    the other names in `MISHAPS` meet that mishap. `!hang` waits until it is cancelled or released; as words of a stream
    `!pause` waits likewise and `!break` fails."""

    MISHAPS: Mapping[str, Exception] = {
        "!overloaded": Overloaded("the queue is full", retry_after_s=7),
        "!deadline": DeadlineExceeded("timeout_s ran out"),
        "!long": ContextTooLong("900 text + 20 virtual + 200 new tokens exceed the context of 1024", param="input"),
        "!failure": EngineFailure(f"tensor in {SECRET}"),
        "!cancelled": RequestCancelled("the request was cancelled"),
        "!bug": RuntimeError(f"a bug in {SECRET}"),
    }

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Decoding, int | None, float]] = []
        self.groups: list[list[str]] = []
        self.views: dict[str | tuple[str, str], list[float]] = {}
        self.texts: dict[str, str] = {}
        self.admitted: list[str] = []
        self.refuse: ChorusError | None = None
        self.full: Overloaded | None = None
        self.cancelled = 0
        self.threads: list[int] = []
        self.tenants: list[str] = []
        self.started = self.draining = self.stalled = False
        self.ready: Exception | None = None
        self.ready_runs = 0
        self._stopped = asyncio.Event()
        self._released = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def release(self) -> None:
        """Let all that hang go on; from any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._released.set)

    async def start(self) -> None:
        self.started, self._loop = True, asyncio.get_running_loop()

    async def stop(self, drain_s: float) -> None:
        self.draining = True
        self._stopped.set()
        self._released.set()

    def check_room(self) -> None:
        if self.full is not None:
            raise self.full

    async def admit(self, prompt: LoadedPrompt) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.admitted.append(f"{prompt.task}@{prompt.version}")

    async def answer(
        self,
        prompt: LoadedPrompt,
        input: Mapping[str, str],
        *,
        decoding: Decoding,
        seed: int | None,
        timeout_s: float,
        tenant: str = "",
    ) -> Answer:
        self.tenants.append(tenant)
        await self._begin(prompt, input, decoding, seed, timeout_s)
        name = f"{prompt.task}@{prompt.version}"
        if prompt.verbalizer is not None:
            labels = prompt.verbalizer.labels
            even = [1 / len(labels)] * len(labels)
            shares = self.views.get((name, next(iter(input.values()))), self.views.get(name, even))
            return label_answer(labels, [math.log(share) for share in shares], self._usage(prompt, input, 0))
        text = self.texts.get(name, " ".join(input.values()))
        return Answer(text, "stop", self._usage(prompt, input, len(text.split())))

    async def answer_together(
        self, asks: Sequence[Ask], *, timeout_s: float, tenant: str = ""
    ) -> list[Answer | ChorusError]:
        self.groups.append([f"{ask.prompt.task}@{ask.prompt.version}" for ask in asks])
        return list(await asyncio.gather(*(self._answer_or_error(ask, timeout_s, tenant) for ask in asks)))

    async def _answer_or_error(self, ask: Ask, timeout_s: float, tenant: str) -> Answer | ChorusError:
        try:
            return await self.answer(
                ask.prompt, ask.input, decoding=ask.decoding, seed=ask.seed, timeout_s=timeout_s, tenant=tenant
            )
        except ChorusError as error:
            return error

    async def stream(
        self,
        prompt: LoadedPrompt,
        input: Mapping[str, str],
        *,
        decoding: Decoding,
        seed: int | None,
        timeout_s: float,
        tenant: str = "",
    ) -> AsyncGenerator[StreamEvent, None]:
        self.tenants.append(tenant)
        await self._begin(prompt, input, decoding, seed, timeout_s)
        words = " ".join(input.values()).split()
        for place, word in enumerate(words):
            if word == "!break":
                raise EngineFailure(f"tensor in {SECRET}")
            if word == "!pause":
                await self._hang()
            yield StreamEvent(word if place == 0 else f" {word}")
        yield StreamEvent("", "stop", self._usage(prompt, input, len(words)))

    async def answer_coupled(self, asks: Sequence[Ask], *, timeout_s: float, tenant: str = "") -> Coupled:
        self.groups.append([f"{ask.prompt.task}@{ask.prompt.version}" for ask in asks])
        first = asks[0]
        answer = await self.answer(
            first.prompt, first.input, decoding=first.decoding, seed=first.seed, timeout_s=timeout_s, tenant=tenant
        )
        return Coupled(answer, tuple(-1.0 - place for place in range(len(asks))), 0.5)

    async def stream_coupled(
        self, asks: Sequence[Ask], *, timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[StreamEvent, None]:
        coupled = await self.answer_coupled(asks, timeout_s=timeout_s, tenant=tenant)
        for word in coupled.answer.text.split():
            yield StreamEvent(word)
        yield StreamEvent("", "stop", coupled.answer.usage, coupled.members, coupled.agreement)

    async def explain(self, prompt: LoadedPrompt, *, words: int) -> tuple[list[Any], list[list[float]]]:
        """As of a hand-written prompt: nothing."""
        return [], []

    async def check_ready(self) -> None:
        self.ready_runs += 1
        if self.ready is not None:
            raise self.ready

    def stats(self) -> EngineStats:
        return EngineStats(running=1, waiting=2)

    def set_threads(self, count: int) -> None:
        self.threads.append(count)

    async def _begin(
        self, prompt: LoadedPrompt, input: Mapping[str, str], decoding: Decoding, seed: int | None, timeout_s: float
    ) -> None:
        prompt.template.check_input(input)
        self.asked.append((f"{prompt.task}@{prompt.version}", dict(input), decoding, seed, timeout_s))
        for text in input.values():
            if text in self.MISHAPS:
                raise self.MISHAPS[text]
            if text == "!hang":
                await self._hang()

    async def _hang(self) -> None:
        try:
            await self._released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self._stopped.is_set():
            raise CutOff("this replica stopped before the answer was there")

    def _usage(self, prompt: LoadedPrompt, input: Mapping[str, str], completion: int) -> Usage:
        return Usage(sum(len(text.split()) for text in input.values()), completion, prompt.num_virtual_tokens)


@dataclass
class World:
    """An application around fakes, with the tasks `sentiment` (labels), `echo` (text) and `nli` (two fields)."""

    app: FastAPI
    engine: FakeEngineService
    store: PromptStore
    settings: Settings
    jobs: JobStore


def make_world(
    folder: Path, redis_url: str, *, limits: EdgeLimits | None = None, backbone: Any = None, **settings: Any
) -> World:
    backbone = backbone or FakeBackbone()
    chosen = Settings(data_dir=folder, redis_url=redis_url, **settings)
    store = PromptStore(MemoryMetadata(), BlobStore(folder / "blobs"))
    publish(store, backbone, "sentiment", "Review: {text}\nSentiment:", labels=("negative", "positive"))
    publish(store, backbone, "echo", "{text}")
    publish(store, backbone, "nli", "{premise}\n{hypothesis}", fields=("premise", "hypothesis"), labels=("yes", "no"))
    jobs = JobStore.open(redis_url, folder, store, lease_s=15)
    engine = FakeEngineService()
    app = create_app(chosen, store=store, backbone=backbone, engine=engine, jobs=jobs, limits=limits)  # type: ignore[arg-type]
    return World(app, engine, store, chosen, jobs)


def publish(
    store: PromptStore,
    backbone: Any,
    task: str,
    template: str,
    *,
    fields: tuple[str, ...] = ("text",),
    labels: tuple[str, ...] | None = None,
    alias: str | None = "prod",
) -> int:
    """Publish a hand-written prompt (no vectors) as the task's next version; returns its number."""
    words = None if labels is None else {label: (f" {label}",) for label in labels}
    ids = None if labels is None else {label: ((place + 1,),) for place, label in enumerate(labels)}
    meta = PromptMeta(
        task=task,
        template=template,
        verbalizer=words,
        verbalizer_ids=ids,
        bos="none",
        method={"type": "hard"},
        backbone=backbone.ref,
        num_virtual_tokens=0,
        decoding=Decoding(max_tokens=16),
    )
    done = store.publish(
        task=task,
        meta=meta,
        tensors={},
        publication=f"test-{next(_numbers)}",
        alias=alias,
        spec=TaskSpec(fields=fields, labels=labels),
    )
    return done.version.number
