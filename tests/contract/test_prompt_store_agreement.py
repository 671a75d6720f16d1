"""Random histories, played to the fake and to a real server: every outcome and every state must be the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from prompt_store import (
    AliasTarget,
    BlobStore,
    Ensemble,
    MemoryMetadata,
    NewPrompt,
    PromptStore,
    RedisMetadata,
    RevisionMismatch,
    Share,
    StoreError,
)
from prompt_store.testing import EXAMPLE_SPEC, example_evaluation, example_meta, example_tensors

TASKS = st.sampled_from(["nli", "topic"])
ALIASES = st.sampled_from(["prod", "canary"])
NUMBERS = st.integers(1, 5)
REVISIONS = st.sampled_from([None, None, 0, 1, 2, 3])
STATES = st.sampled_from(["candidate", "published", "quarantined", "retired"])
SPLITS = st.dictionaries(NUMBERS, st.sampled_from([0.1, 1.0, 2.5]), min_size=2, max_size=3)
MEMBERS = st.lists(NUMBERS, min_size=2, max_size=3, unique=True)
TARGETS = st.one_of(
    NUMBERS.map(lambda number: AliasTarget(version=number)),
    SPLITS.map(lambda found: AliasTarget(split=tuple(Share(version=one, weight=of) for one, of in found.items()))),
    MEMBERS.map(lambda found: AliasTarget(ensemble=Ensemble(members=tuple(found), mode="vote"))),
)
LABELS = st.sampled_from([None, ("a", "b")])


class Histories(RuleBasedStateMachine):
    """Each rule makes one call on both stores."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
        self._folder = tempfile.TemporaryDirectory()
        root = Path(self._folder.name)
        self.real = PromptStore(RedisMetadata(self.url), BlobStore(root / "real"))
        self.fake = PromptStore(MemoryMetadata(), BlobStore(root / "fake"))
        self.followed = {store: store.snapshot() for store in (self.real, self.fake)}

    def teardown(self) -> None:
        self.real.close()
        self._folder.cleanup()

    def both(self, call: Callable[[PromptStore], Any]) -> None:
        assert outcome(call, self.real) == outcome(call, self.fake)

    @rule(task=TASKS, labels=LABELS)
    def put_task(self, task: str, labels: tuple[str, ...] | None) -> None:
        spec = EXAMPLE_SPEC.model_copy(update={"labels": labels})
        self.both(lambda store: store.put_task(task, spec))

    @rule(task=TASKS)
    def delete_task(self, task: str) -> None:
        self.both(lambda store: store.delete_task(task))

    @rule(
        task=TASKS,
        publication=st.sampled_from(["a", "b", "c", "d", "e"]),
        alias=st.none() | ALIASES,
        revision=REVISIONS,
        fence=st.sampled_from([None, None, 1, 2]),
        create=st.booleans(),
        state=STATES,
    )
    def publish(self, task, publication, alias, revision, fence, create, state) -> None:
        meta = example_meta(task)
        self.both(
            lambda store: store.publish(
                task=task,
                meta=meta,
                tensors=example_tensors(meta, ord(publication)),
                publication=publication,
                alias=alias,
                alias_revision=revision,
                fence=fence,
                state=state,
                spec=EXAMPLE_SPEC if create else None,
            )
        )

    @rule(
        task=TASKS,
        publication=st.sampled_from(["a", "b", "f", "g"]),
        count=st.integers(2, 3),
        mode=st.sampled_from(["vote", "mean"]),
        alias=st.none() | ALIASES,
        revision=REVISIONS,
        fence=st.sampled_from([None, 1, 2]),
        create=st.booleans(),
    )
    def publish_together(self, task, publication, count, mode, alias, revision, fence, create) -> None:
        meta = example_meta(task)
        prompts = [NewPrompt(meta, example_tensors(meta, ord(publication) + place)) for place in range(count)]
        self.both(
            lambda store: store.publish_together(
                task=task,
                prompts=prompts,
                publication=publication,
                alias=alias,
                mode=mode,
                alias_revision=revision,
                fence=fence,
                spec=EXAMPLE_SPEC if create else None,
            )
        )
        self.both(lambda store: store.find_publications(publication))

    @rule(task=TASKS, number=NUMBERS, state=STATES)
    def set_state(self, task: str, number: int, state: Any) -> None:
        self.both(lambda store: store.set_state(task, number, state))

    @rule(task=TASKS, number=NUMBERS, score=st.sampled_from([0.1, 0.2]))
    def append_evaluation(self, task: str, number: int, score: float) -> None:
        self.both(lambda store: store.append_evaluation(task, number, example_evaluation(score)))

    @rule(task=TASKS, name=ALIASES, to=TARGETS, expected=REVISIONS)
    def move_alias(self, task: str, name: str, to: AliasTarget, expected: int | None) -> None:
        self.both(lambda store: store.move_alias(task, name, to, expected=expected))

    @rule(task=TASKS, name=ALIASES, expected=REVISIONS)
    def delete_alias(self, task: str, name: str, expected: int | None) -> None:
        self.both(lambda store: store.delete_alias(task, name, expected=expected))

    @rule(after=NUMBERS, limit=NUMBERS, task=TASKS)
    def list_versions(self, task: str, after: int, limit: int) -> None:
        self.both(lambda store: store.list_versions(task, after=after, limit=limit))

    @rule()
    def follow(self) -> None:
        """What changed since some earlier call, applied, is what reading everything tells."""
        for store, known in self.followed.items():
            delta = store.delta(known)
            assert delta is not None
            self.followed[store] = known.after(delta)
            whole = store.snapshot()
            assert self.followed[store] == whole
            assert self.followed[store].versions == whole.versions  # in the same order, too
            assert self.followed[store].aliases == whole.aliases

    @invariant()
    def registries_are_equal(self) -> None:
        self.both(lambda store: plain_snapshot(store))
        self.both(lambda store: [plain(event) for event in store.events()])


def plain_snapshot(store: PromptStore) -> Any:
    snapshot = plain(store.snapshot())
    del snapshot["last_event_id"]
    return snapshot


def outcome(call: Callable[[PromptStore], Any], store: PromptStore) -> Any:
    """What came back, without times and random ids; or the error, as far as a caller may rely on it."""
    try:
        return plain(call(store))
    except StoreError as error:
        current = error.current if isinstance(error, RevisionMismatch) else None
        return type(error), error.message, error.param, current


def plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    elif hasattr(value, "__dataclass_fields__"):
        value = vars(value)
    if isinstance(value, dict):
        hidden = {"id", "task_id", "created_at", "updated_at", "at"}
        return {key: plain(item) for key, item in value.items() if key not in hidden}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def play(url: str, examples: int, steps: int) -> None:
    machine = type("Histories", (Histories,), {"url": url})
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    config = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, database=None
    )
    run_state_machine_as_test(machine, settings=config)


def test_fake_and_server_agree_on_random_histories(redis_url: str) -> None:
    play(redis_url, examples=8, steps=25)


@pytest.mark.slow
def test_fake_and_server_agree_on_many_random_histories(redis_url: str) -> None:
    play(redis_url, examples=200, steps=50)
