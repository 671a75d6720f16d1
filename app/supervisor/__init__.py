"""Runs Chorus on one machine: the embedded server, and the processes that `chorus up` keeps together."""

from app.supervisor.child import Child, ChildSpec
from app.supervisor.embedded import EmbeddedServer, ServerFailed, running_url
from app.supervisor.lock import FolderBusy, FolderLock
from app.supervisor.supervisor import GaveUp, Supervisor

__all__ = [
    "Child",
    "ChildSpec",
    "EmbeddedServer",
    "FolderBusy",
    "FolderLock",
    "GaveUp",
    "ServerFailed",
    "Supervisor",
    "running_url",
]
