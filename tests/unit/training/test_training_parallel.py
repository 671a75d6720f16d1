"""Processes that learn a job together: what each computes, that together equals alone, and what ends them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from app.backbone import Row
from app.backbone.placement import check_map, device_of
from app.errors import UnsupportedBackbone
from app.settings import Settings
from app.training.data import Example
from app.training.examples import Encoded
from app.training.gradients import Lesson
from app.training.loading import load_for_training
from app.training.parallel import share_of


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.parallel", str(folder), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CHORUS_LOG_LEVEL": "error"}
    return subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)


def test_losses_of_two_processes_equal_those_of_one(tmp_path: Path) -> None:
    done = run(tmp_path, 2)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [len(of) for of in found["alone"]] == [6, 8, 8, 8]
    for alone, together in zip(found["alone"], found["together"], strict=True):
        assert list(together) == list(alone)
        assert list(together.values()) == pytest.approx(list(alone.values()), rel=1e-4)


def test_process_that_dies_ends_the_others_as_a_crash(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(tmp_path, 2, 3)
    assert done.returncode == os.EX_SOFTWARE, done.stderr
    assert time.monotonic() - began < 100
    assert "together" not in done.stdout


def lesson(lengths: list[int]) -> Lesson:
    rows = [Encoded(Row(tuple(range(length))), None, (1,), Example(0, {})) for length in lengths]
    return Lesson(torch.zeros(2, 4), rows, None)


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_rows_are_dealt_out_once_each_and_evenly(processes: int) -> None:
    lessons = [lesson([5, 9, 30, 2]), lesson([7, 8])]
    shares = [share_of(lessons, rank, processes) for rank in range(processes)]
    for i, whole in enumerate(lessons):
        dealt = Counter(id(row) for share in shares for row in share[i].rows)
        assert dealt == Counter(id(row) for row in whole.rows)
    counts = [sum(len(of.rows) for of in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert all(len(share) == len(lessons) for share in shares)


def test_processes_take_gpus_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("cpu", 3, 4) == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [str(device_of("auto", rank, 2)) for rank in range(2)] == ["cuda:0", "cuda:1"]
    assert [str(device_of("cuda:2", rank, 2)) for rank in range(2)] == ["cuda:2", "cuda:3"]
    assert str(device_of("cuda:1", 0, 1)) == "cuda:1"
    with pytest.raises(UnsupportedBackbone) as refused:
        device_of("cuda:2", 0, 3)
    assert refused.value.param == "train_processes"


@pytest.mark.parametrize("places", [{"a": 0, "b": "disk"}, {"a": 0, "b": "cpu"}, {"": "disk"}])
def test_model_that_overflows_the_gpus_is_refused(places: dict[str, int | str]) -> None:
    with pytest.raises(UnsupportedBackbone) as refused:
        check_map(places)
    assert refused.value.param == "device_map"


def test_model_over_all_gpus_and_several_processes_are_refused_together(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, device_map="auto", train_processes=2)
    with pytest.raises(UnsupportedBackbone) as refused:
        load_for_training(settings)
    assert refused.value.param == "train_processes"
