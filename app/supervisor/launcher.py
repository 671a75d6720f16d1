"""Start one program tied to the life of its parent: `python -I -S launcher.py PARENT_PID LIFELINE_FD PROGRAM ARGS…`.

A script of its own, run before the program it starts, so that the tie exists before the first line of that program. On
Linux the kernel keeps it (`PR_SET_PDEATHSIG` survives exec) and this process becomes the program. Elsewhere, or when
LIFELINE_FD is not -1, this process stays as the program's keeper and kills it when the pipe at LIFELINE_FD ends.

It imports nothing of this project: it must work, and start fast, whatever state the project is in.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1
LAUNCH_FAILED = 127


def die_with_parent(parent_pid: int) -> bool:
    """Ask the kernel to kill this process when its parent dies; False where the kernel cannot."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        return False
    if os.getppid() != parent_pid:  # it died before the tie was made: no signal will ever come
        os._exit(LAUNCH_FAILED)
    return True


def keep(argv: list[str], lifeline: int) -> int:
    """Run `argv` until it ends or the lifeline does; returns its exit status, or dies of the signal it died of."""
    import subprocess

    child = subprocess.Popen(argv, close_fds=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: child.send_signal(got))

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        child.kill()

    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    return status


def main() -> None:
    parent_pid, lifeline, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    try:
        if lifeline >= 0:
            sys.exit(keep(argv, lifeline))
        if not die_with_parent(parent_pid):
            sys.exit(f"cannot tie {argv[0]} to its parent on {sys.platform}")
        os.execv(argv[0], argv)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot start {argv[0]}: {error.strerror}\n")
        sys.exit(LAUNCH_FAILED)


if __name__ == "__main__":
    main()
