"""Publishing, before and after: prompts with their cards go in, versions and their alias come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prompt_store.blob_format import decode_blob, encode_blob
from prompt_store.blobs import digest_of
from prompt_store.errors import Conflict, InvalidBlob
from prompt_store.metadata import Content
from prompt_store.models import MAX_MEMBERS, MIN_MEMBERS, Alias, Evaluation, PromptMeta, Version, VersionState


@dataclass(frozen=True)
class NewPrompt:
    """One prompt to publish: its metadata, its tensors by name (float32) and its card so far."""

    meta: PromptMeta
    tensors: Mapping[str, np.ndarray]
    card: Sequence[Evaluation] = ()


@dataclass(frozen=True)
class Publication:
    """What `publish` did: the version, the alias it was published under as it stands now, and whether this very call
    made it (False: the same publication had been made before)."""

    version: Version
    alias: Alias | None
    created: bool


@dataclass(frozen=True)
class JointPublication:
    """What `publish_together` did: the versions in the order given, their alias as it stands now, and whether this very
    call made them."""

    versions: tuple[Version, ...]
    alias: Alias | None
    created: bool


def encode(prompt: NewPrompt, task: str, key: str) -> tuple[Content, bytes]:
    """What the registry is told of a prompt, and its blob. Raises InvalidBlob."""
    if prompt.meta.task != task:
        raise InvalidBlob(f"the metadata names the task {prompt.meta.task}, not {task}", param="meta")
    data = encode_blob(prompt.meta, prompt.tensors)
    content = Content(
        publication=key,
        digest=digest_of(data),
        size_bytes=len(data),
        meta=decode_blob(data)[0],  # as a reader will see it: tuples in free-form parts have become lists
        card=tuple(plain(evaluation) for evaluation in prompt.card),
    )
    return content, data


def plain(evaluation: Evaluation) -> Evaluation:
    """The evaluation as a reader will see it: tuples in its free-form details become lists."""
    return Evaluation.model_validate_json(evaluation.model_dump_json())


def check_state(alias: str | None, state: VersionState) -> None:
    """Raise Conflict where an alias would point to a version that does not answer."""
    if alias is not None and state in ("retired", "quarantined"):
        raise Conflict(f"no alias may point to a version that is {state}", param="alias")


def check_count(prompts: Sequence[NewPrompt]) -> None:
    """Raise InvalidBlob unless there are as many prompts as an ensemble has members."""
    if not MIN_MEMBERS <= len(prompts) <= MAX_MEMBERS:
        raise InvalidBlob(
            f"{len(prompts)} prompts; {MIN_MEMBERS} to {MAX_MEMBERS} are published together", param="prompts"
        )
