"""Bodies and answers of adapters: prompts in PEFT's files, in JSON."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from app.api.schemas.base import AliasName, Ask, Reply
from app.api.schemas.tasks import Label
from app.errors import InvalidPrompt, InvalidRequest

if TYPE_CHECKING:
    from app.interchange.adapter_files import AdapterFiles

Word = Annotated[str, Field(min_length=1, max_length=200)]


class AdapterBody(Ask):
    """An adapter, or a template without vectors, and what becomes of it. What `GET …/adapter` answers may be sent as it
    is."""

    adapter_config: dict[str, Any] | None = Field(
        None, description="The object of PEFT's `adapter_config.json`; without it the prompt is a hand-written one."
    )
    adapter_model: str | None = Field(
        None, min_length=1, description="The bytes of `adapter_model.safetensors` in base64, with `adapter_config`."
    )
    template: str | None = Field(
        None,
        min_length=1,
        max_length=16_384,
        description=(
            "Text with {fields}. An adapter's goes first where it has no slot, and is `{text}` unless given; a "
            "hand-written prompt is one without slots."
        ),
    )
    verbalizer: dict[Label, Annotated[list[Word], Field(min_length=1, max_length=32)]] | None = Field(
        None, max_length=512, description="The words of each label; without it a new task answers in free text."
    )
    task_index: int | None = Field(
        None, ge=0, le=1_000_000, description="Which task of a multitask prompt that holds several."
    )
    alias: AliasName | None = Field("prod", description="The alias that moves to the new version; null moves none.")
    create_task: bool = Field(False, description="Make the task if there is none of this name.")

    def model_bytes(self) -> bytes:
        """Raises InvalidRequest where `adapter_model` is missing, InvalidPrompt where it is not base64."""
        if self.adapter_model is None:
            raise InvalidRequest("an adapter is both its files: `adapter_model` is missing", param="adapter_model")
        try:
            return base64.b64decode(self.adapter_model, validate=True)
        except ValueError:
            raise InvalidPrompt("`adapter_model` is not base64", param="adapter_model") from None


class AdapterView(Reply):
    """A version as the files of a PEFT adapter, with the wording that PEFT does not keep."""

    adapter_config: dict[str, Any]
    adapter_model: str = Field(description="The bytes of `adapter_model.safetensors` in base64.")
    template: str | None
    verbalizer: dict[str, list[str]] | None

    @classmethod
    def of(cls, files: AdapterFiles) -> AdapterView:
        return cls(
            adapter_config=dict(files.config),
            adapter_model=base64.b64encode(files.model).decode("ascii"),
            template=files.template,
            verbalizer=None if files.verbalizer is None else dict(files.verbalizer),
        )
