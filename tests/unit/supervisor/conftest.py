"""Small programs to supervise."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.supervisor import Child, ChildSpec
from app.supervisor.logs import ProcessLog

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def make_child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Make a child that runs a Python program; the rest are fields of its spec."""
    made: list[Child] = []

    def make(program: str = SLEEPER, *, name: str = "child", kernel_ties: bool = True, **spec: object) -> Child:
        argv = (sys.executable, "-I", "-S", "-c", program)
        spec_ = ChildSpec(name=name, title=f"the {name}", argv=argv, **spec)  # type: ignore[arg-type]
        made.append(Child(spec_, ProcessLog(name, tmp_path, None), kernel_ties=kernel_ties))
        return made[-1]

    yield make
    for child in made:
        child.kill()
        child.log.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """True while the process runs; one that ended but is not yet reaped does not run."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"
