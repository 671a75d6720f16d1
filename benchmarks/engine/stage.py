"""The processes of one run on one model, and rounds that interleave them.

A peer is started when a section first wants it and kept for the sections that follow. In every round each entrant
answers the same requests, one entrant after another, in an order that turns: what slows the machine slows all alike.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine.models import SHAPES, model_folder
from benchmarks.engine.wire import ROOT, Child, PeerFailed
from benchmarks.engine.workload import Workload

VLLM = ROOT / ".peers" / "vllm"
ROWS = 64
ROUND_S = 20.0
"""Seconds a peer may take for its round; one that took longer is asked fewer requests in the rounds that follow."""
CHECK_TURN = 0  # the round whose tokens are compared; measured rounds are 1, 2, …
_MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("peer_generate", {}),
    "peft": ("peer_peft", {}),
    "ceilings": ("ceilings", {}),
    "chorus": ("chorus_engine", {"rows": ROWS, "prompt_cache_mib": 2048}),
    "chorus-lean": ("chorus_engine", {"rows": ROWS, "context": 256, "prompt_cache_mib": 64}),
    "imports": ("imports", {}),
}


@dataclass(frozen=True)
class Entrant:
    """One line of a table: a peer, how it is to work, and on which share of the requests (slow ones get fewer), but
    never fewer than `least`, which fills its batch. With `each_task`, every round has that many requests of each task,
    however long it takes: one whose batches hold a single task each can fill them no other way."""

    label: str
    peer: str
    how: str = ""
    share: float = 1.0
    least: int = ROWS
    slot: str = ""
    each_task: int = 0

    @property
    def ours(self) -> bool:
        return self.peer.startswith("chorus")

    def requests(self, work: Workload, requests: int) -> int:
        """Of its first round, where a full share is `requests`."""
        return self.each_task * work.tasks or max(1, round(requests * self.share))


@dataclass
class Result:
    """`requests` of the last round. `values`: requests per second, one for each round. `differing`: rows of the checked
    round whose answers are not the reference's, and how many of these at a close call. `note`: why it was not
    measured. `rows_a_batch`: mean of the last round, None of a peer that makes up its batches itself."""

    requests: int = 0
    values: list[float] = field(default_factory=list)
    checked: int = 0
    differing: int = 0
    close: int = 0
    note: str = ""
    rows_a_batch: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else 0.0


class Stage:
    """Peers of one model. `blocks`: block sizes that vLLM runs with, one process each; `continuous_blocks`: those of
    transformers' continuous batching. `only`: what the names of the peers that take part begin with; empty lets all."""

    def __init__(
        self,
        model: str,
        work: Path,
        *,
        rounds: int,
        requests: int,
        threads: int,
        blocks: Sequence[int],
        continuous_blocks: Sequence[int] = (32,),
        only: Sequence[str] = (),
    ) -> None:
        self.shape, self.rounds, self.requests, self.threads = SHAPES[model], rounds, requests, threads
        self.blocks, self.continuous_blocks, self._only = tuple(blocks), tuple(continuous_blocks), tuple(only)
        self.folder = model_folder(work.resolve(), model)
        self.versions: dict[str, str] = {}
        self._children: dict[str, Child] = {}
        self._broken: dict[str, str] = {}
        self._works: dict[tuple[str, str], Workload] = {}

    def ask(self, peer: str, op: str, **arguments: Any) -> dict[str, Any]:
        """One answer of a peer, started if need be. Raises PeerFailed."""
        if not self.takes_part(peer):
            raise PeerFailed("left out of this run")
        if peer in self._broken:
            raise PeerFailed(self._broken[peer])
        if peer not in self._children:
            try:
                self._children[peer] = self._start(peer)
            except PeerFailed as error:
                self._broken[peer] = str(error)
                raise
            self.versions.update(self._children[peer].ready.get("versions", {}))
        return self._children[peer].ask(op, **arguments)

    def takes_part(self, peer: str) -> bool:
        return not self._only or peer in ("ceilings", "imports") or peer.startswith(self._only)

    def prepare(self, peer: str, slot: str, work: Workload) -> None:
        """Let a peer get ready for a workload, unless it is."""
        if self._works.get((peer, slot)) != work:
            self.ask(peer, "prepare", work=work.as_json(), slot=slot)
            self._works[peer, slot] = work

    def forget(self, peer: str) -> None:
        """Empty a peer's cache of what it was asked, so that no section profits from another's texts."""
        self.ask(peer, "forget")
        self._works = {key: work for key, work in self._works.items() if key[0] != peer}

    def ready(self, peer: str) -> dict[str, Any]:
        return self._children[peer].ready

    def dismiss(self, peer: str) -> None:
        """End a peer's process; a later question starts it afresh."""
        child = self._children.pop(peer, None)
        if child is not None:
            child.close()
        self._works = {key: work for key, work in self._works.items() if key[0] != peer}

    def close(self) -> None:
        for peer in list(self._children):
            self.dismiss(peer)

    def _start(self, peer: str) -> Child:
        module, options = _module(peer)
        python, environment = sys.executable, {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(self.threads)}
        if module == "peer_vllm":
            python = str(VLLM / "bin" / "python")
            if not Path(python).exists():
                raise PeerFailed("vLLM is not installed: make bench-peers")
            environment["LD_PRELOAD"] = str(VLLM / "lib" / "libiomp5.so")  # what it recommends on Intel and AMD
        common = {"model": self.shape.name, "folder": str(self.folder), "threads": self.threads}
        return Child(peer, f"benchmarks.engine.{module}", {**common, **options}, python=python, environment=environment)


def _module(peer: str) -> tuple[str, dict[str, Any]]:
    """A peer's module and options; vLLM and continuous batching are one process for each block size."""
    if peer in _MODULES:
        return _MODULES[peer]
    kind, _, block = peer.rpartition("-")
    options = {"rows": ROWS, "block_size": int(block)}
    return {"vllm": ("peer_vllm", options), "continuous": ("peer_continuous", {**options, "batch_tokens": 2048})}[kind]


def interleave(
    stage: Stage, works: Mapping[str, Workload], entrants: Sequence[Entrant], *, requests: int, check: int = 0
) -> dict[str, Result]:
    """Rounds of every entrant on `requests` fresh requests; `works` by slot. With `check`, that many answers of each
    are compared with the reference's. An entrant that cannot do it has a note and no values."""
    results = {entrant.label: Result(entrant.requests(works[entrant.slot], requests)) for entrant in entrants}
    for peer in {entrant.peer for entrant in entrants if entrant.peer.startswith("vllm")}:
        with suppress(PeerFailed):  # `prepare` will say why
            stage.forget(peer)
    for entrant in entrants:
        try:
            stage.prepare(entrant.peer, entrant.slot, works[entrant.slot])
        except PeerFailed as error:
            results[entrant.label].note = str(error)
    alive = [entrant for entrant in entrants if not results[entrant.label].note]
    if check and stage.takes_part("generate"):
        _check(stage, works, alive, results, check)
    for turn in range(1, stage.rounds + 1):
        shift = turn % max(1, len(alive))
        for entrant in (*alive[shift:], *alive[:shift]):
            result = results[entrant.label]
            if result.note:
                continue
            if result.values and not entrant.each_task:
                result.requests = fewer(result.requests, result.values[-1], entrant.least)
            try:
                answer = _measure(stage, entrant, turn, result.requests, even=entrant.each_task > 0)
            except PeerFailed as error:
                result.note = str(error)
                continue
            result.values.append(result.requests / answer["seconds"])
            result.rows_a_batch = answer.get("rows_a_batch")
    return results


def fewer(requests: int, rate: float, least: int) -> int:
    """Requests of the next round, after one of `requests` at `rate` requests per second."""
    return min(requests, max(least, int(rate * ROUND_S)))


def _measure(stage: Stage, entrant: Entrant, turn: int, count: int, *, even: bool = False) -> dict[str, Any]:
    return stage.ask(entrant.peer, "measure", turn=turn, count=count, how=entrant.how, slot=entrant.slot, even=even)


def _check(
    stage: Stage, works: Mapping[str, Workload], entrants: Sequence[Entrant], results: dict[str, Result], count: int
) -> None:
    """Compare answers with transformers' own, one row at a time without padding."""
    for slot, work in works.items():
        stage.prepare("generate", slot, work)
        reference = stage.ask("generate", "reference", turn=CHECK_TURN, count=count, slot=slot)
        for entrant in entrants:
            if entrant.slot != slot or entrant.how == "single":  # that one is the reference
                continue
            result = results[entrant.label]
            try:
                answers = _measure(stage, entrant, CHECK_TURN, count)["answers"]
            except PeerFailed as error:
                result.note = str(error)
                continue
            result.checked += count
            differing, close = compare(
                answers, reference["answers"], reference["margins"], tolerance=TOLERANCE[stage.shape.dtype]
            )
            result.differing, result.close = result.differing + differing, result.close + close


# Two logits this near may change places: twice the tolerance of design's invariants, and four steps of bfloat16 at 2.
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.0625}


def compare(
    answers: Sequence[Any], wanted: Sequence[Any], margins: Sequence[Sequence[float]], *, tolerance: float
) -> tuple[int, int]:
    """(rows that differ, those of them whose first difference is at a gap of less than `tolerance`)."""
    differing = close = 0
    for answer, want, gaps in zip(answers, wanted, margins, strict=True):
        if answer == want:
            continue
        differing += 1
        pairs = zip(answer, want, strict=False) if isinstance(want, list) else [(answer, want)]
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        close += at is not None and gaps[at] < tolerance
    return differing, close
