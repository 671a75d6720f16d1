"""`chorus up`: which processes, with which settings, and what a person is told while they run."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rich.console import Console
from rich.status import Status
from rich.text import Text

from app.access import Directory, KeysUnavailable, is_made_key
from app.errors import TracingUnavailable
from app.settings import BUNDLED_MODEL, MIN_KEY_CHARS, Settings
from app.supervisor.address import AddressRefused, base_url, is_loopback, take_port
from app.supervisor.banner import Facts, render
from app.supervisor.child import Child, ChildSpec
from app.supervisor.embedded import EmbeddedServer, ServerFailed, make_private, ping, server_folder
from app.supervisor.lock import FolderBusy, FolderLock
from app.supervisor.logs import ProcessLog, condense
from app.supervisor.probe import get
from app.supervisor.supervisor import GaveUp, Supervisor, stop_on_signals
from app.telemetry.tracing import check_extra

LOCK_NAME = "up.lock"
LOCK_WAIT_S = 2.0
API_READY_S = 60.0
STOP_MARGIN_S = 5.0  # beside the drain time: for closing what is open
WORKER_STOP_S = 25.0
SHOWN_TAIL = 12
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
STYLES = {"api": "cyan", "worker": "magenta", "server": "blue"}

Announce = Callable[[dict[str, Any]], None]


class CannotStart(Exception):
    """`chorus up` ended by itself: the message says why, `fix` what to do, `after_start` whether it had begun."""

    def __init__(self, message: str, fix: str | None = None, *, after_start: bool = False) -> None:
        super().__init__(message)
        self.fix = fix
        self.after_start = after_start


def run_up(settings: Settings, console: Console, *, verbose: bool = False, announce: Announce | None = None) -> None:
    """Run everything until it is told to stop (SIGINT, SIGTERM).

    `announce` is called with the facts when all is ready, instead of a banner on `console`. Raises CannotStart.
    """
    began = time.monotonic()
    key = _key_of_run(settings)
    _check_exposure(settings, key)
    _check_model(settings)
    _check_tracing(settings)
    lock = _take_data_dir(settings)
    try:
        port = take_port(settings.host, settings.port)
        settings = settings.model_copy(update={"port": port, "data_dir": settings.data_dir.absolute()})
        lock.describe(pid=os.getpid(), url=base_url(settings.host, port))
        Up(settings, console, began, key, verbose=verbose, announce=announce).run()
    except AddressRefused as error:
        raise CannotStart(str(error)) from None
    finally:
        lock.release()


class Up:
    """One run of `chorus up`: embedded server (unless another is configured), API, worker."""

    def __init__(
        self,
        settings: Settings,
        console: Console,
        began: float,
        key: str | None,
        *,
        verbose: bool,
        announce: Announce | None,
    ) -> None:
        self.settings, self._key = settings, key
        self.log_dir = settings.data_dir / "logs"
        self._console = console
        self._began = began
        self._verbose = verbose
        self._announce = announce
        make_private(self.log_dir)
        self._server: EmbeddedServer | None = None
        server, api, worker = self._make_server(), self._make_api(), self._make_worker()
        self._children = [*server, api, worker]
        self._stop_order = [api, worker, *server]  # no new jobs, then no running ones, then nobody needs the server
        self._status: Status | None = None

    def run(self) -> None:
        supervisor = Supervisor(self._children, self._say, stop_order=self._stop_order, on_start=self._show_start)
        self._status = self._console.status("Starting …") if self._console.is_terminal and not self._announce else None
        try:
            with stop_on_signals(supervisor):
                if self._status is not None:
                    self._status.start()
                supervisor.run(self._on_ready)
        except GaveUp as error:
            raise _explain(error) from None
        finally:
            if self._status is not None:
                self._status.stop()
            if self._server is not None:
                self._server.kill()
            for child in self._children:
                child.log.close()
        self._say(
            "Stopped at once." if supervisor.forced else f"Stopped. Its state is kept in {self.settings.data_dir}"
        )

    @property
    def redis_url(self) -> str:
        return self._server.url if self._server is not None else str(self.settings.redis_url)

    def _make_server(self) -> list[Child]:
        if self.settings.redis_url is not None:
            if not ping(self.settings.redis_url):
                raise CannotStart(
                    f"no Redis answers at {hide_password(self.settings.redis_url)}",
                    "start it, or unset CHORUS_REDIS_URL: then chorus up brings its own",
                )
            return []
        self._server = EmbeddedServer(server_folder(self.settings.data_dir), log_dir=self.log_dir)
        try:
            self._server.claim()
            return [self._server.make_child()]
        except FolderBusy as error:
            raise CannotStart(
                f"{error}: a server of an earlier run is still there", "wait a moment, or end it"
            ) from None
        except ServerFailed as error:
            raise CannotStart(str(error), "use a Redis of your own: CHORUS_REDIS_URL=redis://host:6379/0") from None

    def _make_api(self) -> Child:
        key = {} if self._key is None else {"CHORUS_API_KEY": self._key}
        return self._make("api", "the API", "serve", ready=self._api_is_ready, stop_s=self.settings.drain_s, more=key)

    def _make_worker(self) -> Child:
        return self._make("worker", "the worker", "worker", ready=None, stop_s=WORKER_STOP_S)

    def _make(
        self,
        name: str,
        title: str,
        command: str,
        *,
        ready: Callable[[], bool] | None,
        stop_s: float,
        more: Mapping[str, str] | None = None,
    ) -> Child:
        spec = ChildSpec(
            name=name,
            title=title,
            argv=(*chorus_command(), command),
            env=environment_of(self.settings, CHORUS_REDIS_URL=self.redis_url, **self._own_server(), **(more or {})),
            ready=ready,
            ready_s=API_READY_S,
            stop_s=stop_s + STOP_MARGIN_S,
        )
        return Child(spec, ProcessLog(name, self.log_dir, self._echo, everything=self._verbose))

    def _own_server(self) -> dict[str, str]:
        """Nobody else looks after an embedded server: the API repairs what it may have lost."""
        return {} if self._server is None else {"CHORUS_REPAIR": "true"}

    def _get(self, path: str) -> tuple[int, Any]:
        return get(self.settings.host, self.settings.port, path, key=self._key)

    def _api_is_ready(self) -> bool:
        return self._get("/readyz")[0] == 200

    def _show_start(self, child: Child) -> None:
        if self._status is not None:
            self._status.update(f"Starting {child.spec.title} …")

    def _on_ready(self) -> None:
        if self._status is not None:
            self._status.stop()
        facts = self._facts()
        if self._announce is None:
            for line in render(facts):
                self._print(Text.from_markup(line) if line.startswith("[") else Text(line))
            return
        children = {child.spec.name: child.pid for child in self._children}
        self._announce(
            {"ready": True, "url": facts.url, "docs": f"{facts.url}/docs", "data_dir": str(facts.data_dir)}
            | {"log_dir": str(facts.log_dir), "redis_url": hide_password(self.redis_url), "pid": os.getpid()}
            | {
                "children": children,
                "tasks": [task["name"] for task in facts.tasks],
                "seconds": round(facts.seconds, 2),
            }
        )

    def _facts(self) -> Facts:
        tasks = (self._get("/v1/tasks?limit=100")[1] or {}).get("data", [])
        on_path = _on_path()
        return Facts(
            url=base_url(self.settings.host, self.settings.port),
            model=_describe_model(self._get("/health")[1] or {}, self.settings),
            data_dir=self.settings.data_dir,
            log_dir=self.log_dir,
            tasks=tasks,
            seconds=time.monotonic() - self._began,
            needs_key=self._key is not None,
            command="chorus" if on_path else _short(_script() or Path("chorus")),
            path_hint=None if on_path else f'export PATH="{Path(sys.executable).parent}:$PATH"   (then: chorus --help)',
        )

    def _say(self, line: str) -> None:
        self._print(Text.assemble((time.strftime("%H:%M:%S "), "dim"), line))

    def _echo(self, name: str, line: str) -> None:
        shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in condense(line))
        self._print(Text.assemble((f"{name:<7}", STYLES.get(name, "")), ("│ ", "dim"), shown))

    def _print(self, text: Text) -> None:
        """A terminal that was closed must not end what runs."""
        try:
            self._console.print(text, soft_wrap=True)
        except OSError:
            self._console.quiet = True


def chorus_command() -> tuple[str, ...]:
    """How to start another `chorus` of this installation, so that `chorus worker` reads so in the process list."""
    script = _script()
    return (sys.executable, str(script)) if script is not None else (sys.executable, "-m", "app")


def environment_of(settings: Settings, **more: str) -> dict[str, str]:
    """The variables that make another process read the same settings."""
    chosen = settings.model_dump(mode="json", exclude_none=True, include=set(settings.model_fields_set) | {"port"})
    named = {f"CHORUS_{name.upper()}": str(value) for name, value in chosen.items()}
    return named | {"CHORUS_DATA_DIR": str(settings.data_dir), "PYTHONUNBUFFERED": "1"} | more


def hide_password(url: str) -> str:
    """A Redis URL as it may be shown: without the servers' password and, in the query, the Sentinels'."""
    url = re.sub(r"([?&]\w*password=)[^&]*", r"\1***", url)
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = f"{parts.username or ''}:***@"
    return urlunsplit(parts._replace(netloc=user + parts.netloc.rpartition("@")[2]))


def _key_of_run(settings: Settings) -> str | None:
    """A key with which this run may ask its own API: the one that is set; a fresh one, which nobody else knows, where
    keys were made; None where no key is asked for. Raises CannotStart."""
    if settings.api_key is not None and not is_made_key(settings.api_key):
        return settings.api_key
    try:
        directory = Directory.open(settings)
    except KeysUnavailable as error:
        raise CannotStart(str(error), "mend it, or name another with CHORUS_KEYS_FILE") from None
    directory.close()
    return secrets.token_urlsafe(32) if directory.has_keys else None


def _check_exposure(settings: Settings, key: str | None) -> None:
    if key is None and not is_loopback(settings.host):
        raise CannotStart(
            f"refusing to listen on {settings.host} without a key: anyone who reaches it could use and train",
            f"chorus keys create --scope admin, or set CHORUS_API_KEY ({MIN_KEY_CHARS} characters or more), "
            "or --host 127.0.0.1",
        )


def _check_model(settings: Settings) -> None:
    """Refuse at once what can be no model, before torch is loaded to find out."""
    source = settings.model
    if source == BUNDLED_MODEL or Path(source).expanduser().is_dir() or HUB_ID.fullmatch(source):
        return
    raise CannotStart(f"--model {source}: neither a folder nor a hub id like org/name", "--model bundled")


def _check_tracing(settings: Settings) -> None:
    """Refuse at once what API and worker would both refuse."""
    try:
        check_extra(settings.otlp_endpoint)
    except TracingUnavailable as error:
        raise CannotStart(str(error)) from None


def _take_data_dir(settings: Settings) -> FolderLock:
    folder = settings.data_dir
    try:
        make_private(folder)
        lock = FolderLock(folder, LOCK_NAME)
        lock.acquire(wait_s=LOCK_WAIT_S)
    except FolderBusy as busy:
        where = f" at {busy.holder['url']}" if "url" in busy.holder else ""
        holder = f"process {busy.holder.get('pid', '?')}{where}"
        raise CannotStart(
            f"`chorus up` already runs on {folder}: {holder}", "use that one, or another --data-dir"
        ) from None
    except OSError as error:
        raise CannotStart(
            f"cannot use the data folder {folder}: {error.strerror or error}", "--data-dir FOLDER"
        ) from None
    return lock


def _explain(error: GaveUp) -> CannotStart:
    lines = "\n".join(f"  {condense(line)}" for line in error.lines[-SHOWN_TAIL:])
    return CannotStart(
        f"{error}. Its last lines:\n{lines}\n  ({error.child.log.path})", "chorus doctor", after_start=True
    )


def _describe_model(health: dict[str, Any], settings: Settings) -> str:
    backbone = health.get("backbone") or {}
    device = str(backbone.get("device", settings.device))
    dtype = str(backbone.get("dtype", settings.dtype))
    name = str(backbone.get("name", settings.model))
    if device.startswith("cpu"):
        count = settings.cpu_threads
        why = " (no GPU found)" if settings.device == "auto" else ""
        return f"{name} on the CPU{why}, {count} thread{'s' if count > 1 else ''}, {dtype}"
    return f"{name} on {device}, {dtype}"


def _script() -> Path | None:
    """The installed `chorus` beside this interpreter; None when the package is not installed."""
    script = Path(sys.executable).parent / "chorus"
    return script if script.is_file() else None


def _on_path() -> bool:
    found = shutil.which("chorus")
    return found is not None and _script() is not None and Path(found).samefile(_script() or found)


def _short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
