"""Several processes that learn one job together: each computes the gradients of a share of every step's rows.

What is learned is small and what is large is frozen, so nothing is wrapped: every process holds the model, and the
first one, the leader, alone knows learners, optimisers, schedules, judges, checkpoints and the registry. In a step it
sends the prompts as the model reads them, and the rows; each process sums the gradients of its share; one sum over
processes gives what the leader would have computed alone, up to the order of sums.

What travels are prompts and their gradients, a few megabytes a step at most, over gloo between host memories: GPUs of
any kind do, and a process that dies closes its connections, which ends the others. Messages are JSON and float32.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from app.backbone import Backbone, Row, Verbalizer
from app.backbone.recomputation import are_recomputed, recompute_layers
from app.backbone.soft_prompt import from_tensors, parts_of, to_tensors
from app.training.data import Example
from app.training.examples import Encoded
from app.training.gradients import Lesson, fill_gradients

PATIENCE = timedelta(days=7)
"""Followers wait while the leader judges prompts; that nobody is there any more is told by a closed connection."""


class ProcessLost(SystemExit):
    """Another process of this job has died. Not an error of the job: the attempt ends as one whose process crashed."""

    def __init__(self, reason: str) -> None:
        super().__init__(os.EX_SOFTWARE)
        self.reason = reason


def join(rank: int, processes: int, port: int) -> None:
    """Meet the job's other processes on this machine; all call this. Raises ProcessLost where one is missing."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in numbers.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    try:
        PartialState(cpu=True, backend="gloo", timeout=PATIENCE)
    except RuntimeError as error:
        raise ProcessLost(str(error)) from error


class Leader:
    """Computes gradients with the followers. Call `close` at the end."""

    def fill(self, backbone: Backbone, lessons: Sequence[Lesson], terms: Sequence[int], tokens: int) -> Tensor:
        """As `fill_gradients`, by all processes. Raises torch.OutOfMemoryError where any of them ran out of memory,
        ProcessLost where one is gone."""
        told = [_told(lesson) for lesson in lessons]
        recompute = are_recomputed(backbone.model)
        _send({"lessons": told, "terms": list(terms), "tokens": tokens, "recompute": recompute})
        for lesson in lessons:
            for part in parts_of(lesson.prompt):
                _broadcast(part.detach().float().cpu().contiguous())
        return _fill_share(backbone, lessons, terms, tokens)

    def close(self) -> None:
        """Let the followers go, those that are still there."""
        with contextlib.suppress(ProcessLost):
            _send({"end": True})


def follow(backbone: Backbone) -> None:
    """Compute shares until the leader says that it is done. Raises ProcessLost when it is gone."""
    while True:
        told = _receive()
        if told.get("end"):
            return
        recompute_layers(backbone.model, told["recompute"])
        lessons = [_heard(lesson, backbone.device) for lesson in told["lessons"]]
        _fill_share(backbone, lessons, told["terms"], told["tokens"])


def share_of(lessons: Sequence[Lesson], rank: int, processes: int) -> list[Lesson]:
    """This process's rows of every lesson: the rows by length, dealt out in turn."""
    every = [(i, row) for i, lesson in enumerate(lessons) for row in lesson.rows]
    every.sort(key=lambda pair: -pair[1].length)
    mine: dict[int, list[Encoded]] = {}
    for i, row in every[rank::processes]:
        mine.setdefault(i, []).append(row)
    return [replace(lesson, rows=mine.get(i, [])) for i, lesson in enumerate(lessons)]


def _fill_share(backbone: Backbone, lessons: Sequence[Lesson], terms: Sequence[int], tokens: int) -> Tensor:
    """Own gradients, then the sum over processes, put into the prompts' `grad`; the losses' sums [n]."""
    parts = [part for lesson in lessons for part in parts_of(lesson.prompt)]
    short, losses = 0.0, torch.zeros(len(lessons))
    try:
        share = share_of(lessons, dist.get_rank(), dist.get_world_size())
        losses = fill_gradients(backbone, share, terms, tokens).float().cpu()
    except torch.OutOfMemoryError:  # the others must hear of it, in the sum that they wait for
        short = 1.0
        for part in parts:
            part.grad = None
    found = [torch.zeros(part.shape) if part.grad is None else part.grad.float().cpu() for part in parts]
    message = torch.cat([*(part.reshape(-1) for part in found), losses, torch.tensor([short])])
    try:
        dist.all_reduce(message)
    except RuntimeError as error:
        raise ProcessLost(str(error)) from error
    if message[-1] > 0:
        if dist.get_rank() == 0:
            raise torch.OutOfMemoryError("a process of this job has no memory for its share of a step")
        return losses
    *summed, losses, _ = message.split([*(part.numel() for part in parts), len(lessons), 1])
    for part, gradient in zip(parts, summed, strict=True):
        part.grad = gradient.view(part.shape).to(part.device, part.dtype)
    return losses


def _told(lesson: Lesson) -> dict[str, Any]:
    """A lesson as JSON, its prompt's tensors by their shapes."""
    return {
        "shapes": {name: list(part.shape) for name, part in to_tensors(lesson.prompt).items()},
        "verbalizer": None if lesson.verbalizer is None else asdict(lesson.verbalizer),
        "rows": [[of.row.ids, of.row.prefix, of.row.decoder, of.label, of.answer] for of in lesson.rows],
    }


def _heard(told: Mapping[str, Any], device: torch.device) -> Lesson:
    """The lesson, its prompt's tensors received one by one, as leaves."""
    tensors = {}
    for name, shape in told["shapes"].items():
        part = torch.empty(shape)
        _broadcast(part)
        tensors[name] = part.to(device).requires_grad_()
    prompt = from_tensors(tensors)
    assert prompt is not None
    rows = [
        Encoded(Row(tuple(ids), prefix, decoder), label, tuple(answer), Example(0, {}))
        for ids, prefix, decoder, label, answer in told["rows"]
    ]
    words = told["verbalizer"]
    return Lesson(prompt, rows, None if words is None else _verbalizer(words))


def _verbalizer(told: Mapping[str, Any]) -> Verbalizer:
    labels, words = tuple(told["labels"]), tuple(map(tuple, told["words"]))
    ids = tuple(tuple(map(tuple, of)) for of in told["ids"])
    return Verbalizer(labels, words, ids, terminated=told["terminated"], apart=told["apart"])


def _broadcast(tensor: Tensor) -> None:
    """From the leader to all, in place."""
    try:
        dist.broadcast(tensor, src=0)
    except RuntimeError as error:
        raise ProcessLost(str(error)) from error


def _send(message: Mapping[str, Any]) -> None:
    data = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
    _broadcast(torch.tensor([data.numel()]))
    _broadcast(data)


def _receive() -> dict[str, Any]:
    size = torch.zeros(1, dtype=torch.int64)
    _broadcast(size)
    data = torch.empty(int(size), dtype=torch.uint8)
    _broadcast(data)
    found: dict[str, Any] = json.loads(data.numpy().tobytes())
    return found
