from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.pretraining.conftest import World
from tests.unit.pretraining.test_command import written

ROOT = Path(__file__).parents[3]


def started(world: World, recipe: Path, *more: str) -> subprocess.Popen[bytes]:
    places = ["--data", str(world.data), "--corpus", str(world.corpus), "--work", str(world.work)]
    command = [sys.executable, "-m", "pretraining", "train", *places, "--recipe", str(recipe), "--threads", "1", *more]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)


def curve(world: World) -> list[tuple[int, float, Any]]:
    lines = (world.work / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["step"], line["loss"], line["sources"]) for line in map(json.loads, lines)]


@pytest.mark.chaos
def test_run_when_its_process_is_killed_goes_on_to_the_same_losses(packed: World, tmp_path: Path) -> None:
    recipe = written(tmp_path, steps=4000, log_every=1, checkpoint_every=3, evaluate_every=10_000)
    log = packed.work / "train.jsonl"
    process = started(packed, recipe)
    limit = time.monotonic() + 120
    while process.poll() is None and not (log.is_file() and log.read_bytes().count(b"\n") >= 8):
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    end = str(log.read_bytes().count(b"\n") + 20)
    assert started(packed, recipe, "--until", end).wait() == 0
    cut = curve(packed)
    for made in (log, packed.work / "evaluations.jsonl"):
        made.unlink()
    shutil.rmtree(packed.work / "checkpoints")
    assert started(packed, recipe, "--until", end).wait() == 0
    assert [step for step, _, _ in cut] == list(range(1, int(end) + 1))
    assert cut == curve(packed)
