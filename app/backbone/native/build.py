"""Compile the C files beside this for this machine, once: the library stays in the user's cache and is found there.

Nothing depends on it: without a C compiler, or on a platform where this fails, `load` returns None with a line in the
log, and the same steps run in plain torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent  # all of its .c files, one library
# Sums may be reordered (vectors), but NaN and infinity keep their meaning: they are how a broken row is found.
_FLAGS = (
    *("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math"),
    *("-fno-signed-zeros", "-freciprocal-math", "-fopenmp", "-shared", "-fPIC"),
)
_DEFINES = {torch.float32: ("-DCHORUS_F32",), torch.bfloat16: ()}
_TIMEOUT_S = 60


def could_be(dtype: torch.dtype) -> bool:
    """Whether there are compiled steps for a storage type on this platform, given a compiler."""
    return dtype in _DEFINES and sys.platform.startswith("linux")


@cache
def load(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled steps for a storage type, or None where there are none."""
    if not could_be(dtype):
        return None
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    try:
        command = (compiler or "cc", *_FLAGS, *_DEFINES[dtype])
        library = _folder() / f"steps-{_key(command)}.so"
        if not library.exists():
            if compiler is None:
                log.info("no C compiler: attention runs in plain torch, which is slower")
                return None
            _compile(command, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("compiled attention is not to be had, plain torch takes its place", extra={"error": repr(error)})
        return None


def _compile(command: tuple[str, ...], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        fresh = Path(folder) / library.name
        done = subprocess.run(
            (*command, *map(str, sorted(SOURCES.glob("*.c"))), "-o", str(fresh), "-lm"),
            capture_output=True,
            timeout=_TIMEOUT_S,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OSError(f"the C compiler failed: {done.stderr.strip()[-400:]}")
        fresh.replace(library)  # whoever comes second finds a whole file


def _key(command: tuple[str, ...]) -> str:
    """Changes with source, flags, compiler and processor: a library for another machine is never loaded."""
    processor = platform.processor()
    with_flags = Path("/proc/cpuinfo")
    if with_flags.exists():
        lines = with_flags.read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), processor)
    what = repr((command, processor, platform.machine(), torch.__version__)).encode()
    text = b"".join(file.read_bytes() for file in sorted(SOURCES.glob("*.[ch]")))
    return hashlib.sha256(text + what).hexdigest()[:24]


def _folder() -> Path:
    """Ours alone: what lies here is loaded into the process."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chorus"
    if not os.access(next(p for p in (base, *base.parents) if p.exists()), os.W_OK):
        base = Path(tempfile.gettempdir()) / f"chorus-{os.getuid()}"
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    if base.stat().st_uid != os.getuid():
        raise OSError(f"{base} belongs to somebody else")
    return base
