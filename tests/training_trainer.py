"""The trainer's process with pauses, so that a test can kill its worker in a state that else lasts milliseconds.

Pauses, seconds: behind each transition, and between the commit of a version and the word that it was made.
"""

from __future__ import annotations

import os
import time
from typing import Any

from app.training import run
from app.training.session import Session
from prompt_store import JointPublication, PromptStore, Publication

PAUSE_S = float(os.environ.get("CHORUS_TEST_PAUSE_S", "0"))

_move, _publish, _publish_together = Session._move, PromptStore.publish, PromptStore.publish_together


def _slow_move(self: Session, to: Any) -> None:
    _move(self, to)
    time.sleep(PAUSE_S)


def _slow_publish(self: PromptStore, **what: Any) -> Publication:
    made = _publish(self, **what)
    time.sleep(PAUSE_S)
    return made


def _slow_publish_together(self: PromptStore, **what: Any) -> JointPublication:
    made = _publish_together(self, **what)
    time.sleep(PAUSE_S)
    return made


if __name__ == "__main__":
    Session._move = _slow_move
    PromptStore.publish = _slow_publish
    PromptStore.publish_together = _slow_publish_together
    raise SystemExit(run.main())
