"""Logs, metrics and traces of the service. Imported by all layers above the errors; knows no HTTP, tasks or tensors."""

from app.telemetry.logs import configure_logging, request_id
from app.telemetry.metrics import Metrics

__all__ = ["Metrics", "configure_logging", "request_id"]
