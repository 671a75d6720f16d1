"""All settings, read once from the environment (`CHORUS_*`) and passed down. Nothing below `app.main` reads the
environment; engine, backbone and training take small frozen configurations made from this.
"""

from __future__ import annotations

import os
import sys
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

BUNDLED_MODEL = "bundled"
MIN_KEY_CHARS = 16
"""Of a key that is set, not made."""


def default_data_dir() -> Path:
    """The user's data folder for Chorus, by the platform's convention."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "chorus"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "chorus"


class Settings(BaseSettings):
    """Every setting of the service. Names in the environment: `CHORUS_` + the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_", extra="ignore", frozen=True)

    # where it listens
    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on; 0 takes a free one.")

    # where state lives
    data_dir: Path = Field(default_factory=default_data_dir, description="Folder for everything this machine keeps.")
    redis_url: str | None = Field(None, description="Redis, Valkey, Sentinels; unset: `chorus up` embeds a server.")
    blob_dir: Path | None = Field(None, description="Folder of prompt blobs, shared by replicas (data_dir/blobs).")
    blobs_url: str | None = Field(
        None, description="Object store of blobs, records and data sets, s3://bucket/prefix; blob_dir holds copies."
    )

    # the frozen model
    model: str = Field(BUNDLED_MODEL, description="Backbone: `bundled`, a local folder, or a hub id.")
    model_revision: str | None = Field(None, description="Pinned revision of a hub model (a commit hash).")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Serving dtype.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` …")
    device_map: Literal["none", "auto", "balanced", "balanced_low_0", "sequential"] = Field(
        "none", description="How a model larger than one GPU lies over several, by transformers; replaces `device`."
    )
    threads: int = Field(0, ge=0, description="CPU threads for the model at most; 0 takes all cores.")
    starters: bool = Field(True, description="Register the bundled starter prompts when the backbone matches.")

    # limits of the engine
    max_rows: int = Field(64, ge=1, le=1024, description="Rows that run at once.")
    max_context: int = Field(1024, ge=16, description="Longest row in tokens, virtual tokens and answer included.")
    max_queued_rows: int = Field(2048, ge=1, description="Rows that may wait; more are refused with 429.")
    max_queued_tokens: int = Field(262_144, ge=1, description="Tokens that may wait, answers included; as above.")
    max_batch_tokens: int = Field(
        4096, ge=64, description="Tokens in one prefill; prompts that are computed for the first time come on top."
    )
    prompt_cache_mb: int = Field(256, ge=1, description="Budget for cached prompt keys and values, MiB.")
    host_prompt_cache_mb: int = Field(128, ge=1, description="Budget for verified prompts in main memory, MiB.")
    preload: str = Field(
        "", description="Prompts to load before the service is ready: references with commas, or `*` for all that fit."
    )
    prompt_vectors_mb: int = Field(64, ge=1, description="Budget for prompts' vectors beside their keys, MiB.")
    default_timeout_s: float = Field(60.0, gt=0, description="Deadline of a request that names none.")
    max_timeout_s: float = Field(600.0, gt=0, description="Longest deadline a request may ask for.")
    stall_s: float = Field(
        180.0,
        ge=0,
        description="A step of the engine that takes longer ends the process, to be started anew; 0: never.",
    )
    drain_s: float = Field(20.0, ge=0, description="How long running requests may take when the service stops.")

    # limits of HTTP
    max_body_bytes: int = Field(1 << 20, ge=1024, description="Largest JSON body.")
    max_upload_bytes: int = Field(64 << 20, ge=1024, description="Largest data set or prompt upload.")
    max_connections: int = Field(
        0, ge=0, description="Open connections; more are refused with 503. 0: as many as open files allow, less 256."
    )
    max_inputs: int = Field(1024, ge=1, description="Inputs in one request.")

    # training
    job_heartbeat_s: float = Field(2.0, gt=0, description="How often a worker says that it lives.")
    job_lease_s: float = Field(15.0, gt=0, description="Silence after which a worker's job is taken over.")
    checkpoint_s: float = Field(10.0, gt=0, description="Time between two checkpoints of a training run.")
    train_processes: int = Field(
        1, ge=1, le=64, description="Processes that train one job together, a GPU each from `device` on."
    )
    max_train_rows: int = Field(200_000, ge=1, description="Largest number of training rows.")

    # registry
    reconcile_s: float = Field(5.0, gt=0, description="How often a replica compares its epoch with the registry's.")
    scrub_s: float = Field(3600.0, ge=0, description="How often each blob is read again and verified; 0: never.")
    repair: bool = Field(
        False, description="At start, make Redis and the record files agree; `chorus up` does so for its own server."
    )
    orphan_grace_s: float = Field(86_400.0, ge=0, description="Age at which a blob no version names is removed.")

    # keys
    api_key: str | None = Field(
        None,
        description=f"A key with every scope ({MIN_KEY_CHARS} characters or more), beside those made by `chorus keys`.",
    )
    keys_file: Path | None = Field(None, description="File of made keys, without secrets (data_dir/keys/keys.json).")
    key_pepper: str | None = Field(
        None, min_length=32, description="Secret that keys are hashed with; unset: data_dir/keys/pepper."
    )
    audit: Literal["off", "changes", "all"] = Field(
        "changes", description="Calls written to data_dir/logs/audit-HOST.jsonl: none, changes and refusals, or all."
    )

    # logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["json", "text"] = Field("text", description="Form of log lines.")

    # traces
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]",
        description="OTLP/HTTP collector that traces are sent to, like `http://collector:4318`; unset: none are made. "
        "Needs the extra `tracing`.",
    )
    trace_share: float = Field(1.0, ge=0, le=1, description="Share of the traces begun here that are kept.")

    @field_validator("redis_url")
    @classmethod
    def _readable(cls, url: str | None) -> str | None:
        """A wrong address stops the start with its name and its form. Nothing is connected to."""
        if url is not None:
            from prompt_store.redis_url import client_from_url

            client_from_url(url).close()
        return url

    @field_validator("blobs_url")
    @classmethod
    def _usable(cls, url: str | None) -> str | None:
        """A wrong place, or one whose library is not installed, stops the start and not the first request."""
        if url is not None:
            from prompt_store import InvalidBlobsUrl, ObjectStore

            try:
                ObjectStore(url)
            except InvalidBlobsUrl as error:
                raise ValueError(error.message) from None
        return url

    @cached_property
    def blobs(self) -> Path:
        return self.blob_dir or self.data_dir / "blobs"

    @cached_property
    def preload_refs(self) -> tuple[str, ...]:
        return tuple(ref.strip() for ref in self.preload.split(",") if ref.strip())

    @cached_property
    def cpu_threads(self) -> int:
        if self.threads:
            return self.threads
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return count or 1
