"""A whole `chorus up` in processes of its own, and the environment that a reader's commands run in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HANG_S = 400.0


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of Chorus, one thread for each process, and `more`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHORUS_")}
    return inherited | {"OMP_NUM_THREADS": "1"} | more


@contextmanager
def chorus_up(folder: Path, **settings: str) -> Iterator[str]:
    """The address of a `chorus up` on a free port with its data in `folder`, stopped at the end."""
    with (folder / "stderr").open("w") as stderr:
        up = subprocess.Popen(
            [sys.executable, "-m", "app", "up", "--json", "--port", "0", "--data-dir", str(folder / "data")],
            env=clean_environment(**settings),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert up.stdout is not None
    try:
        line = up.stdout.readline()
        assert line, (folder / "stderr").read_text()
        yield json.loads(line)["url"]
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(HANG_S)
        up.stdout.close()
