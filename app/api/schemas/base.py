"""Bases of the wire models: requests are closed and strict (no `true` as a number), answers are plain."""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from prompt_store.models import ALIAS_NAME, TASK_NAME

Item = TypeVar("Item")

TaskName = Annotated[str, Field(pattern=TASK_NAME, examples=["sentiment"])]
AliasName = Annotated[str, Field(pattern=ALIAS_NAME, examples=["prod"])]
# A reference is read by `prompt_store.parse_ref`, which says best what is wrong with it; only its length is bound here.
Reference = Annotated[
    str,
    Field(
        min_length=1,
        max_length=140,
        description="`task` (its alias `prod`), `task@version` or `task:alias`.",
        examples=["sentiment", "sentiment@3", "sentiment:canary"],
    ),
]


class Ask(BaseModel):
    """Base of request bodies."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Reply(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(frozen=True)


class Page(Reply, Generic[Item]):
    """A list answers with a page: ask again with `after` set to the last item's name, number or id."""

    data: list[Item]
    has_more: bool
