"""Whatever happens to an engine, in whatever order: every row ends exactly once, what it holds stays consistent, and a
row that was answered got the answer that the model's own forward gives it alone, by the version that its task had when
it was asked."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.backbone import Backbone, LoadedPrompt, encode_row
from app.engine import Engine, EngineConfig, Event, Request, RowRequest, Sampling
from app.engine.intake import common_text
from tests.architectures import build_backbone
from tests.prompts import TEMPLATES, TEXTS, WORDS, make_prompt

SUFFIX = 2  # the template whose rows begin with text
VERSIONS = 3  # of each task, by their seeds; the task of a hand-written template has one
WAYS = (
    Sampling(max_tokens=1),
    Sampling(max_tokens=6),
    Sampling(max_tokens=9, temperature=1.0, seed=5),
    Sampling(max_tokens=4, temperature=0.7, top_k=20, top_p=0.9, seed=6),
)


@cache
def prompt(model: str, template: int, seed: int = 0) -> LoadedPrompt:
    return make_prompt(build_backbone(model), TEMPLATES[template], words=WORDS, seed=seed)


@cache
def row(model: str, template: int, text: int, way: int, seed: int = 0) -> RowRequest:
    of = prompt(model, template, seed)
    encoded = encode_row(build_backbone(model).tokenizer, of.template, of.bos, {"text": TEXTS[text]})
    sampling = WAYS[way] if way < len(WAYS) else None
    return RowRequest(
        encoded, of.digest if of.vectors is not None else None, sampling, None if sampling else of.verbalizer
    )


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_engine(backbone: Backbone, clock: Any, *, slots: int) -> Engine:
    """One whose budgets hold two or three prompts, so that others come and go."""
    config = EngineConfig(
        max_rows=slots,
        max_context=96,
        max_batch_tokens=120,
        prompt_cache_bytes=20_000,
        prompt_vector_bytes=4_000,
        max_prefills_in_a_row=2,
    )
    return Engine(backbone, config, clock=clock)


@cache
def plain(model: str) -> Backbone:
    """The model as it comes, through its own forward and cache: nothing is shared, kept, padded or packed."""
    backbone = build_backbone(model)
    return replace(backbone, probed=replace(backbone.probed, forward=None, decoder=None))


@cache
def vectors(model: str) -> dict[str, torch.Tensor]:
    prompts = [prompt(model, template, seed) for template in range(len(TEMPLATES)) for seed in range(VERSIONS)]
    return {of.digest: of.vectors for of in prompts if of.vectors is not None}


def alone(model: str, rows: tuple[RowRequest, ...], *, coupled: bool) -> list[list[Event]]:
    """What the rows give on the plain model, each by itself or coupled."""
    engine = make_engine(plain(model), Clock(), slots=len(rows))
    assert engine.runner.name == "reference"
    got: dict[tuple[str, int], list[Event]] = defaultdict(list)
    parts = [rows] if coupled else [(of,) for of in rows]
    for i, part in enumerate(parts):
        engine.submit(Request(str(i), part, 1e9, coupled=coupled), vectors(model))
        while not engine.idle:
            for event in engine.step():
                got[event.request_id, event.row].append(event)
    return [got[key] for key in sorted(got)]


_ALONE: dict[tuple[Any, ...], list[list[Event]]] = {}


class Promises(RuleBasedStateMachine):
    model = "llama"  # through the packed runner

    @initialize(slots=st.integers(3, 5))
    def begin(self, slots: int) -> None:
        self.clock = Clock()
        self.engine = make_engine(build_backbone(self.model), self.clock, slots=slots)
        self.engine.scheduler.worth_a_pass = 1
        self.versions = [0] * len(TEMPLATES)  # of each task, the one that is asked for now
        self.requests: dict[str, tuple[tuple[RowRequest, ...], bool]] = {}
        self.events: dict[tuple[str, int], list[Event]] = defaultdict(list)
        self.broken = False
        honest = self.engine.runner.decode

        def decode(tokens: torch.Tensor, lengths: torch.Tensor, longest: int) -> torch.Tensor:
            if self.broken and tokens.shape[0] > 1:
                self.broken = False
                raise torch.OutOfMemoryError("planted")
            return honest(tokens, lengths, longest)

        self.engine.runner.decode = decode  # type: ignore[method-assign]

    def add(self, rows: tuple[RowRequest, ...], deadline: float, task: str, **options: Any) -> None:
        name = f"r{len(self.requests)}"
        self.requests[name] = (rows, bool(options.get("coupled")))
        assert all(row.digest in (None, *vectors(self.model)) for row in rows)
        request = Request(name, rows, self.clock.now + deadline, flow=("", task), **options)
        self.engine.submit(request, vectors(self.model))

    @rule(
        template=st.integers(0, 4), text=st.integers(0, 4), way=st.integers(0, 4), deadline=st.sampled_from([1e6, 3.0])
    )
    def submit_single(self, template: int, text: int, way: int, deadline: float) -> None:
        self.add((self.row(template, text, way),), deadline, f"t{template}")

    @rule(text=st.integers(0, 4), ways=st.lists(st.integers(0, 4), min_size=2, max_size=6))
    def submit_rows_that_share_text(self, text: int, ways: list[int]) -> None:
        seeds = [(self.versions[SUFFIX] + i) % VERSIONS for i in range(len(ways))]
        rows = tuple(row(self.model, SUFFIX, text, way, seed) for way, seed in zip(ways, seeds, strict=True))
        self.add(rows, 1e6, "fan-out", shared=common_text(rows))

    @rule(templates=st.lists(st.integers(0, 4), min_size=1, max_size=3), text=st.integers(0, 4), way=st.integers(0, 3))
    def submit_coupled(self, templates: list[int], text: int, way: int) -> None:
        self.add(tuple(self.row(template, text, way) for template in templates), 1e6, "coupled", coupled=True)

    def row(self, template: int, text: int, way: int) -> RowRequest:
        return row(self.model, template, text, way, self.versions[template])

    @rule(template=st.integers(0, SUFFIX + 1))
    def swap(self, template: int) -> None:
        """A version is published: it becomes resident, newcomers ask for it, and the old one is let go, whoever still
        needs it."""
        old = prompt(self.model, template, self.versions[template])
        self.versions[template] = (self.versions[template] + 1) % VERSIONS
        new = prompt(self.model, template, self.versions[template])
        assert old.digest != new.digest
        self.engine.load(new.digest, vectors(self.model)[new.digest])
        self.engine.release(old.digest)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(sorted(self.requests))))

    @rule(template=st.integers(0, 4), seed=st.integers(0, VERSIONS - 1))
    def release(self, template: int, seed: int) -> None:
        self.engine.release(prompt(self.model, template, seed).digest)

    @rule(seconds=st.floats(0.1, 4))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def memory_runs_out_in_the_next_decode(self) -> None:
        self.broken = True

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            for event in self.engine.step():
                self.events[event.request_id, event.row].append(event)
            self.engine.check_integrity()

    @invariant()
    def is_consistent(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()

    def teardown(self) -> None:
        for _ in range(2_000):
            if self.engine.idle:
                break
            self.step(1)
        assert self.engine.idle
        for name, (rows, coupled) in self.requests.items():
            for index, wanted in enumerate(self.wanted(rows, coupled)):
                check_row(self.events[name, index], wanted)

    def wanted(self, rows: tuple[RowRequest, ...], coupled: bool) -> list[list[Event]]:
        wanted: list[list[Event]] = []
        for part in [rows] if coupled else [(of,) for of in rows]:
            key = (self.model, coupled, part)
            if key not in _ALONE:
                _ALONE[key] = alone(self.model, part, coupled=coupled)
            wanted += _ALONE[key]
        return wanted


class PaddedPromises(Promises):
    model = "gpt2"  # through the runner that pads


def check_row(got: list[Event], wanted: list[Event]) -> None:
    assert [event.finish is not None for event in got] == [False] * (len(got) - 1) + [True]
    tokens = [event.token for event in got if event.token is not None]
    whole = [event.token for event in wanted if event.token is not None]
    if got[-1].finish in ("cancelled", "timeout"):
        assert tokens == whole[: len(tokens)]
        return
    assert (tokens, got[-1].finish) == (whole, wanted[-1].finish)
    if wanted[-1].scores is not None:
        assert got[-1].scores == pytest.approx(wanted[-1].scores, abs=1e-4)
    for one, other in zip(got, wanted, strict=True):
        if other.view is not None:
            assert one.view is not None
            assert one.view.logprob == pytest.approx(other.view.logprob, abs=1e-3)


_SETTINGS = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPromises, TestPaddedPromises = Promises.TestCase, PaddedPromises.TestCase
TestPromises.settings = TestPaddedPromises.settings = _SETTINGS


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_versions_of_a_task_answer_differently_so_that_a_swap_under_way_would_show(model: str) -> None:
    rows = [row(model, template, 2, 1, seed) for template in range(SUFFIX + 2) for seed in range(VERSIONS)]
    told = [tuple(event.token for event in events) for events in alone(model, tuple(rows), coupled=False)]
    for template in range(SUFFIX + 2):
        assert len(set(told[template * VERSIONS : (template + 1) * VERSIONS])) == VERSIONS
