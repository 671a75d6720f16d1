"""The engine: continuous batching of mixed-task rows over one frozen model."""

from app.engine.answers import Answer, Ask, Coupled, StreamEvent, Usage
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.service import EngineService
from app.engine.types import (
    Capabilities,
    EngineStats,
    Event,
    FinishReason,
    Request,
    RowRequest,
    Sampling,
    View,
)

__all__ = [
    "Answer",
    "Ask",
    "Capabilities",
    "Coupled",
    "Engine",
    "EngineConfig",
    "EngineService",
    "EngineStats",
    "Event",
    "FinishReason",
    "Request",
    "RowRequest",
    "Sampling",
    "StreamEvent",
    "Usage",
    "View",
]
