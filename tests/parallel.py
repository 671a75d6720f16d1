"""Prompts that learn alone and over several processes, for tests: python -m tests.parallel FOLDER PROCESSES [KILL_AT]

Prints as JSON the losses of all runs, first by this process alone, then by all together. With KILL_AT the second
process is killed before that step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from app.backbone import Backbone
from app.settings import Settings
from app.training.checkpoints import Checkpoints
from app.training.cotraining import CoTrainer
from app.training.follow import Followers
from app.training.gradients import Fill, Lesson
from app.training.loading import load_for_training
from app.training.parallel import Leader, join
from tests.cotraining import KINDS, Hearer, make_run


def learn(backbone: Backbone, folder: Path, fill: Fill | None) -> list[dict[int, float]]:
    hearers = [Hearer() for _ in KINDS]
    runs = [make_run(backbone, kind, hearer) for kind, hearer in zip(KINDS, hearers, strict=True)]
    checkpoints = Checkpoints(folder, attempt=1, identity="")
    CoTrainer(backbone, runs, watcher=hearers[0], checkpoints=checkpoints, checkpoint_s=60, fill=fill).run()
    return [hearer.losses for hearer in hearers]


def main(folder: Path, processes: int, kill_at: int) -> None:
    torch.set_num_threads(1)
    settings = Settings(data_dir=folder / "data", threads=2, train_processes=processes, device="cpu")
    followers = Followers(settings)
    backbone = load_for_training(settings)
    alone = learn(backbone, folder / "alone", None)
    join(0, processes, followers.port)
    leader, steps = Leader(), 0

    def fill(backbone: Backbone, lessons: Sequence[Lesson], terms: Sequence[int], tokens: int) -> Any:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(followers.pids[0], signal.SIGKILL)
        return leader.fill(backbone, lessons, terms, tokens)

    together = learn(backbone, folder / "together", fill)
    followers.release()
    leader.close()
    followers.wait(30)
    sys.stdout.write(json.dumps({"alone": alone, "together": together}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
