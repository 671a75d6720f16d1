"""The engine's configuration: frozen, checked, made by the composition root from the settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """`max_rows` run at once, each of at most `max_context` tokens; `max_queued_rows` wait, and of these at most
    `max_queued_tokens` tokens; a prefill computes at most `max_batch_tokens`, and on top of them what begins prompts
    that are met for the first time; at most `max_padding` of a prefill may be padding; `prompt_cache_bytes` bounds the
    cached keys and values of prompts, `prompt_vector_bytes` their vectors. A step that takes `stall_s` seconds ends the
    process; 0 lets it take its time."""

    max_rows: int = 64
    max_context: int = 1024
    max_queued_rows: int = 2048
    max_queued_tokens: int = 262_144
    max_batch_tokens: int = 4096
    max_padding: float = 0.2
    max_prefills_in_a_row: int = 4
    prompt_cache_bytes: int = 256 << 20
    prompt_vector_bytes: int = 64 << 20
    max_stop_chars: int = 64
    threads: int = 0
    stall_s: float = 0.0

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_context < 2 or self.max_batch_tokens < 1:
            raise ValueError("max_rows, max_context and max_batch_tokens must be positive")
        if self.max_queued_rows < 1 or self.max_queued_tokens < 1:
            raise ValueError("max_queued_rows and max_queued_tokens must be positive")
        if not 0 <= self.max_padding < 1:
            raise ValueError("max_padding is a share between 0 and 1")
