"""The line that moves while a load runs; gone when it ends."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from app.cli.bench.measure import Progress


class LiveLine:
    """Redraws only when told: a drawing thread would take time from what is measured."""

    def __init__(self, console: Console) -> None:
        self._live = Live(Text(""), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveLine:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def __call__(self, progress: Progress) -> None:
        self._live.update(Text(str(progress), style="dim", no_wrap=True, overflow="ellipsis"), refresh=True)
