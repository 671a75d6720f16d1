"""What this replica knows of tasks, versions and aliases, and the prompts it has loaded and verified."""

from app.registry.registry import Registry
from app.registry.resolved import Mode, Resolved

__all__ = ["Mode", "Registry", "Resolved"]
