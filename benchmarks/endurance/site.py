"""What the measurements share: a text task on a running service, its load, what became of it, and what processes
hold."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from app.cli.bench.outcomes import Run, percentile
from app.cli.bench.workload import Shot, Target, Workload
from app.supervisor.embedded import running_url, server_folder
from benchmarks.running import Running, checked
from prompt_store import BackboneRef, Decoding, PromptMeta, PromptStore, TaskSpec

CLIENTS = 4
STARTERS = ("sentiment", "topic", "subjectivity", "question-type")
VIRTUAL, TOKENS, WORDS = 20, 16, 24
_numbers = itertools.count()


def redis_url(running: Running) -> str:
    address = running_url(server_folder(running.data_dir))
    assert address is not None, "the service has no server of its own"
    return address


@contextmanager
def open_store(running: Running) -> Iterator[PromptStore]:
    with PromptStore.open(redis_url(running), running.data_dir / "blobs") as store:
        yield store


def publish_text_task(running: Running, store: PromptStore, name: str, *, seed: int = 0, tokens: int = TOKENS) -> None:
    """A version of random vectors that writes `tokens` tokens at most; it becomes the task's `prod`."""
    backbone = checked(httpx.get(f"{running.url}/health", timeout=30))["backbone"]
    hidden = hidden_size(store)
    ref = BackboneRef(name=backbone["name"], fingerprint=backbone["fingerprint"], hidden_size=hidden)
    meta = PromptMeta(
        task=name,
        template=f"<prompt:{VIRTUAL}>{{text}}",
        bos="none",
        method={"type": "prompt_tuning"},
        backbone=ref,
        num_virtual_tokens=VIRTUAL,
        decoding=Decoding(max_tokens=tokens),
    )
    vectors = np.random.default_rng(seed).normal(0, 0.02, (VIRTUAL, hidden)).astype(np.float32)
    store.publish(
        task=name,
        meta=meta,
        tensors={"prompt": vectors},
        publication=f"endurance-{random.randrange(1 << 48):x}-{next(_numbers)}",
        alias="prod",
        spec=TaskSpec(fields=("text",)),
    )


def hidden_size(store: PromptStore) -> int:
    """Of the backbone that the starters belong to."""
    tasks, _ = store.list_tasks(limit=1)
    versions, _ = store.list_versions(tasks[0].name)
    return versions[0].meta.backbone.hidden_size


def until_answered(url: str, task: str, *, timeout_s: float = 30) -> None:
    """Wait until the service knows a task that was published beside it."""
    deadline = time.monotonic() + timeout_s
    while httpx.post(f"{url}/v1/tasks/{task}/generate", json={"input": "a"}, timeout=60).status_code != 200:
        if time.monotonic() > deadline:
            raise SystemExit(f"{url} never answered for {task}")
        time.sleep(0.1)


def load_of(*tasks: str, streamed: float = 0.0, seed: int = 0) -> Iterator[Shot]:
    """Requests of one row without end; a share of `streamed` of them asks for events."""
    targets = [Target(task, 1.0, ("text",), streams=True) for task in tasks]
    dice = random.Random(seed)
    whole, flowing = (Workload(targets, words=WORDS, stream=stream, seed=seed) for stream in (False, True))
    while True:
        yield next(flowing if dice.random() < streamed else whole)


def answered_s(run: Run) -> list[float]:
    """Seconds that each answered request took, ascending."""
    return sorted(one.seconds for one in run.outcomes if one.codes == (None,))


def codes_of(run: Run) -> Counter[str]:
    """How often a row failed with which code. A stream that broke off without its last event has one: `stream_cut`
    or `connection_lost`."""
    return Counter(code for one in run.outcomes for code in one.codes if code is not None)


def told(counts: Mapping[str, int]) -> str:
    """Kinds and how many, the most frequent first; `0` for none."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(counts).most_common()) or "0"


def ms(values: Sequence[float], share: float) -> str:
    """A percentile of ascending seconds, in milliseconds; a dash of none."""
    return f"{1000 * percentile(values, share):.0f} ms" if values else "–"


def children(pid: int) -> list[int]:
    """All processes below one."""
    try:
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return own + [below for child in own for below in children(child)]


def process_of(running: Running, word: str) -> int:
    """The service's process with `word` among its arguments, or as its program's name."""
    for pid in children(running.process):
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = Path(os.fsdecode(program).partition(" ")[0]).name  # a title of its own comes as one argument
        if word.encode() in (name.encode(), *arguments):
            return pid
    raise SystemExit(f"no process of the service is a {word}")


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def threads(pid: int) -> int:
    """Those of the operating system, whoever started them."""
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
