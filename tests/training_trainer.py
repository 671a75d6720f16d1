"""The trainer's process, standing still where a test wants to kill or freeze it (training_hold.py).

Places: a state it moves to, or "published", between the commit of a version and the word that it was made. It leaves
word of what its publication came to. `CHORUS_TEST_FILE_BYTES` limits the size of the files it may write,
`CHORUS_TEST_PATIENCE_S` its patience with a store that refuses.
"""

from __future__ import annotations

import os
import resource
from typing import Any

from app.training import run, session
from app.training.session import Session
from prompt_store import JointPublication, PromptStore, Publication
from tests.training_hold import hold_at, leave_word

_move, _publish, _publish_together = Session._move, PromptStore.publish, PromptStore.publish_together


def _held_move(self: Session, to: Any) -> None:
    _move(self, to)
    hold_at(to)


def _held_publish(self: PromptStore, **what: Any) -> Publication:
    try:
        made = _publish(self, **what)
    except Exception as error:
        leave_word(type(error).__name__)
        raise
    leave_word("published")
    hold_at("published")
    return made


def _held_publish_together(self: PromptStore, **what: Any) -> JointPublication:
    made = _publish_together(self, **what)
    hold_at("published")
    return made


if __name__ == "__main__":
    Session._move = _held_move
    PromptStore.publish = _held_publish
    PromptStore.publish_together = _held_publish_together
    session.PATIENCE_S = float(os.environ.get("CHORUS_TEST_PATIENCE_S", session.PATIENCE_S))
    if "CHORUS_TEST_FILE_BYTES" in os.environ:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["CHORUS_TEST_FILE_BYTES"]), resource.RLIM_INFINITY))
    raise SystemExit(run.main())
