"""The trainer's process, standing still where a test wants to kill its worker: in a state that else lasts milliseconds.

Places: a state it moves to, or "published", between the commit of a version and the word that it was made.
"""

from __future__ import annotations

import os
import time
from typing import Any

from app.training import run
from app.training.session import Session
from prompt_store import JointPublication, PromptStore, Publication

PLACE = os.environ.get("CHORUS_TEST_HOLD", "")
LONGER_THAN_ANY_TEST_S = 600.0

_move, _publish, _publish_together = Session._move, PromptStore.publish, PromptStore.publish_together


def _hold_at(place: str) -> None:
    if place == PLACE:
        time.sleep(LONGER_THAN_ANY_TEST_S)


def _held_move(self: Session, to: Any) -> None:
    _move(self, to)
    _hold_at(to)


def _held_publish(self: PromptStore, **what: Any) -> Publication:
    made = _publish(self, **what)
    _hold_at("published")
    return made


def _held_publish_together(self: PromptStore, **what: Any) -> JointPublication:
    made = _publish_together(self, **what)
    _hold_at("published")
    return made


if __name__ == "__main__":
    Session._move = _held_move
    PromptStore.publish = _held_publish
    PromptStore.publish_together = _held_publish_together
    raise SystemExit(run.main())
