"""What one prompt's run is configured by: its method, its numbers, its template's text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, StrictBool, StrictFloat, StrictInt, StringConstraints, Tag

from app.training.closed import Closed
from app.training.methods import DEFAULT, METHODS, MethodConfig

Auto = Literal["auto"]
TemplateText = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]


def _method_tag(value: Any) -> str | None:
    """Which method a request means. A tag in parentheses keeps it out of the places that errors name."""
    kind = value.get("type", DEFAULT) if isinstance(value, dict) else getattr(value, "type", None)
    return f"({kind})" if isinstance(kind, str) and kind in METHODS else None


if TYPE_CHECKING:
    AnyMethod = MethodConfig
else:
    AnyMethod = Annotated[
        Union[tuple(Annotated[of.config, Tag(f"({kind})")] for kind, of in METHODS.items())],  # noqa: UP007
        Discriminator(
            _method_tag,
            custom_error_type="unknown_method",
            custom_error_message=f"`type` is one of {', '.join(METHODS)}",
        ),
    ]
    """The configuration of any registered method, told apart by `type`; without one it is prompt tuning."""


LearningRate = Annotated[StrictFloat | StrictInt, Field(gt=0, le=100)] | Auto
VirtualTokens = Annotated[StrictInt, Field(ge=1, le=512)] | Auto
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]


class Hyperparameters(Closed):
    """Each a number, or "auto" for a choice made from the data and the backbone."""

    n_epochs: Annotated[StrictFloat | StrictInt, Field(gt=0, le=1000)] | Auto = "auto"
    batch_size: Annotated[StrictInt, Field(ge=1, le=512)] | Auto = "auto"
    learning_rate: LearningRate = "auto"
    num_virtual_tokens: VirtualTokens = "auto"
    seed: Seed | Auto = "auto"
    gradient_checkpointing: StrictBool | Auto = Field(
        default="auto", description="Compute layers again in the backward pass: less memory, up to half more time."
    )
