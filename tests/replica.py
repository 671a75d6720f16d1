"""Replicas of a service, each a process of its own: a real store, real jobs, and an engine that only repeats or, with
`model`, the bundled backbone on the real engine.

    python -m tests.replica REDIS_URL SHARED_FOLDER OWN_FOLDER [model]

Settings come from the environment too. One prints its address, and ends when its standard input does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


@contextmanager
def replicas(
    redis_url: str, shared: Path, own: list[Path], environment: dict[str, str], *, model: bool = False
) -> Iterator[list[str]]:
    """The addresses of replicas, one for each of the folders `own`, that run until the block ends."""
    with ExitStack() as stack:
        kind = ["model"] if model else []
        processes = [_start(stack, [redis_url, str(shared), str(folder), *kind], environment) for folder in own]
        try:
            addresses = [process.stdout.readline().strip() for process in processes if process.stdout is not None]
            assert all(addresses), "a replica did not start"
            yield addresses
        finally:
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            try:
                assert [process.wait(30) for process in processes] == [0] * len(own)
            finally:
                for process in processes:
                    process.kill()


@contextmanager
def mortal_replica(
    redis_url: str, shared: Path, own: Path, environment: dict[str, str]
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of one replica and its process, which the block may kill."""
    with ExitStack() as stack:
        process = _start(stack, [redis_url, str(shared), str(own)], environment)
        stack.callback(process.kill)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the replica did not start"
        yield address, process


def _start(stack: ExitStack, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.replica", *arguments]
    pipe = subprocess.PIPE
    return stack.enter_context(
        subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=pipe, stdout=pipe, text=True)
    )


def main(redis_url: str, shared: str, own: str, model: str = "") -> None:
    from app.backbone import BackboneConfig, load_backbone
    from app.main import create_app
    from app.settings import Settings
    from app.training import JobStore
    from prompt_store import PromptStore
    from tests.fakes import FakeBackbone, FakeEngineService
    from tests.live import serving

    folder = Path(shared)
    with PromptStore.open(redis_url, folder / "blobs") as store:
        app = create_app(
            Settings(data_dir=Path(own), redis_url=redis_url),
            store=store,
            # loaded before the server has its time to start
            backbone=load_backbone(BackboneConfig()) if model else FakeBackbone(),  # type: ignore[arg-type]
            engine=None if model else FakeEngineService(),  # type: ignore[arg-type]
            jobs=JobStore.open(redis_url, folder, store, lease_s=15),
        )
        with serving(app) as live:
            sys.stdout.write(live.url + "\n")
            sys.stdout.flush()
            sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
