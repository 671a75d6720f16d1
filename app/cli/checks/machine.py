"""Checks of the machine: Python, the data folder, the disk, the port."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from app.cli.checks import Check, human
from app.settings import Settings
from app.supervisor.address import AddressRefused, base_url, take_port
from app.supervisor.probe import get

MIN_PYTHON = (3, 11)
LOW_DISK_BYTES = 1 << 30
NO_DISK_BYTES = 100 << 20


def check_python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < MIN_PYTHON:
        return Check("python", "fail", found, "install Python 3.11 or newer, then: make setup")
    return Check("python", "ok", found)


def check_data_dir(settings: Settings) -> Check:
    """A file is written where the state would be."""
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
            os.fsync(probe.fileno())
    except OSError as error:
        return Check("data folder", "fail", f"{folder}: {error.strerror}", "choose another: CHORUS_DATA_DIR=FOLDER")
    return Check("data folder", "ok", f"{folder} can be written")


def check_disk(settings: Settings) -> Check:
    free = shutil.disk_usage(_existing(settings.data_dir)).free
    found = f"{human(free)} free"
    fix = "make room, or choose another folder: CHORUS_DATA_DIR=FOLDER"
    if free < NO_DISK_BYTES:
        return Check("disk", "fail", found, fix)
    return Check("disk", "warn", found, fix) if free < LOW_DISK_BYTES else Check("disk", "ok", found)


def check_port(settings: Settings) -> Check:
    """Free, or taken by a Chorus that answers."""
    where = f"{settings.host}:{settings.port}"
    try:
        take_port(settings.host, settings.port, wait_s=0)
    except AddressRefused as refusal:
        if get(settings.host, settings.port, "/livez", timeout_s=1.0)[0] == 200:
            return Check("port", "ok", f"Chorus answers at {base_url(settings.host, settings.port)}")
        return Check("port", "fail", str(refusal), f"choose another: --port {settings.port + 1}")
    return Check("port", "ok", f"{where} is free")


def _existing(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.exists())
