"""What is loaded before anybody asks: the preload list before a replica is ready, the rest behind its back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.backbone import LoadedPrompt
from app.registry import warming
from prompt_store import TaskNotFound
from tests.fakes import FakeBackbone, publish
from tests.registries import Admission, FragileStore, run, running, until

PROMPT_BYTES = 2048  # what the cache counts for one without vectors


@pytest.fixture
def store(tmp_path: Path) -> FragileStore:
    store = FragileStore(tmp_path)
    for number in range(6):
        publish(store, FakeBackbone(), f"task-{number}", "{text}")
    return store


class SlowAdmission(Admission):
    """Golden replays that end only when they are let go, but for those of `quick` versions."""

    def __init__(self, quick: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.quick = quick
        self.gate = asyncio.Event()

    async def __call__(self, prompt: LoadedPrompt) -> None:
        if f"{prompt.task}@{prompt.version}" not in self.quick:
            await self.gate.wait()
        await super().__call__(prompt)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "_PATIENCE_S", 0.05)


def test_start_does_not_wait_for_the_replay_of_what_nobody_listed(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        admit = SlowAdmission()
        async with running(store, tmp_path, admit) as registry:
            assert registry.known
            assert admit.admitted == []
            admit.gate.set()
            await until(lambda: len(admit.admitted) == 6)

    run(test())


def test_start_waits_for_the_listed_and_only_for_them(store: FragileStore, tmp_path: Path) -> None:
    publish(store, FakeBackbone(), "task-5", "Again: {text}", alias="canary")

    async def test() -> None:
        admit = SlowAdmission(frozenset({"task-3@1", "task-5@2", "task-1@1"}))
        listed = ("task-3", "task-5:canary", "task-1@1", "task-9", "task-1@7", "not a name")
        async with running(store, tmp_path, admit, preload=listed):
            assert set(admit.admitted) == admit.quick
            admit.gate.set()

    run(test())


def test_preload_of_everything_loads_what_fits_and_not_more(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        admit = Admission()
        async with running(store, tmp_path, admit, preload=("*",), host_cache_bytes=4 * PROMPT_BYTES) as registry:
            assert len(admit.admitted) == 4
            assert registry.readings()["prompts_loaded_bytes"] == 4 * PROMPT_BYTES
            assert registry.readings()["prompts_evicted_total"] == 0

    run(test())


def test_what_was_in_use_before_the_restart_is_warmed_first(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        options = {"host_cache_bytes": 2 * PROMPT_BYTES}
        async with running(store, tmp_path, **options) as registry:
            for _ in range(2):
                await registry.resolve_version("task-4")
                await registry.resolve_version("task-2")
        admit = Admission()
        async with running(store, tmp_path, admit, **options):
            await until(lambda: len(admit.admitted) == 2)
            assert set(admit.admitted) == {"task-4@1", "task-2@1"}

    run(test())


@pytest.mark.parametrize("text", ["", "{", "[[1]]", '{"a": 1}', "[[1, 2]]", '"x"'])
def test_list_of_recent_prompts_that_is_damaged_changes_nothing_else(
    store: FragileStore, tmp_path: Path, text: str
) -> None:
    (tmp_path / "recent.json").write_text(text)

    async def test() -> None:
        admit = Admission()
        async with running(store, tmp_path, admit):
            await until(lambda: len(admit.admitted) == 6)

    run(test())


def test_move_of_a_loaded_alias_is_warmed_though_the_budget_is_used_up(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        admit = Admission()
        async with running(store, tmp_path, admit, host_cache_bytes=2 * PROMPT_BYTES) as registry:
            await registry.resolve_version("task-4")
            await registry.resolve_version("task-4")
            await asyncio.to_thread(publish, store, FakeBackbone(), "task-4", "Again: {text}")
            await until(lambda: "task-4@2" in admit.admitted)

    run(test())


def test_new_task_is_left_for_its_first_request_when_the_budget_is_used_up(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        admit = Admission()
        async with running(store, tmp_path, admit, preload=("*",), host_cache_bytes=2 * PROMPT_BYTES) as registry:
            loaded = list(admit.admitted)
            await asyncio.to_thread(publish, store, FakeBackbone(), "task-9", "{text}")
            await registry.refresh()
            await asyncio.sleep(0.05)  # long enough for a load, were there one
            assert admit.admitted == loaded
            assert (await registry.resolve_version("task-9")).version == 1

    run(test())


def test_deleted_task_leaves_the_cache_and_the_engine(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        admit = Admission()
        async with running(store, tmp_path, admit, preload=("*",)) as registry:
            assert registry.readings()["prompts_loaded"] == 6
            digest = (await registry.resolve_version("task-4")).digest
            assert admit.released == []
            await registry.delete_task("task-4")
            await until(lambda: admit.released == [digest])
            await until(lambda: registry.readings()["prompts_loaded"] == 5)
            with pytest.raises(TaskNotFound):
                await registry.resolve_version("task-4")

    run(test())


def test_version_out_of_service_is_not_warmed(store: FragileStore, tmp_path: Path) -> None:
    store.set_state("task-4", 1, "quarantined")

    async def test() -> None:
        admit = Admission()
        async with running(store, tmp_path, admit, preload=("task-4", "*")):
            assert len(admit.admitted) == 5

    run(test())
