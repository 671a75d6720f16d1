"""What a request may sweep over, and the members that come of it: one for each combination of the listed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from app.errors import CapabilityMissing, InvalidRequest, SweepTooLarge
from app.training.closed import Closed
from app.training.configuration import AnyMethod, Hyperparameters, LearningRate, Seed, TemplateText, VirtualTokens
from app.training.methods import METHODS, MethodConfig, SearchedMethod

if TYPE_CHECKING:
    from app.training.requests import TrainRequest

MAX_MEMBERS = 64
MAX_TOP = 8
"""Most members of a sweep that are published together."""

NUMBERS = ("num_virtual_tokens", "learning_rate", "seed")
"""What is swept among the hyperparameters. Batch size and epochs are not: members take their steps together."""

Value = TypeVar("Value")


def _distinct(values: list[Value]) -> list[Value]:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise PydanticCustomError("repeated_value", f"value {place} stands twice")
    return values


Init = Annotated[str, StringConstraints(min_length=1, max_length=32)]


class Sweep(Closed):
    """Lists of values; every combination is a member, 2 to 64 of them. All learn in common batches. Without
    `halving: false`, the worse half ends at a quarter of the steps and half of the rest at a half."""

    method: Annotated[list[AnyMethod], Field(min_length=1), AfterValidator(_distinct)] | None = None
    template: Annotated[list[TemplateText], Field(min_length=1), AfterValidator(_distinct)] | None = None
    init: Annotated[list[Init], Field(min_length=1), AfterValidator(_distinct)] | None = Field(
        default=None, description="Values of the method's `init`."
    )
    num_virtual_tokens: Annotated[list[VirtualTokens], Field(min_length=1), AfterValidator(_distinct)] | None = None
    learning_rate: Annotated[list[LearningRate], Field(min_length=1), AfterValidator(_distinct)] | None = None
    seed: Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)] | None = None
    halving: bool = Field(default=True, description="Whether the worse half stops early.")

    @property
    def lists(self) -> dict[str, list[Any]]:
        """The swept values by their names, in the order in which members count through them."""
        found = {name: getattr(self, name) for name in type(self).model_fields if name != "halving"}
        return {name: values for name, values in found.items() if values is not None}

    @property
    def size(self) -> int:
        size = 1
        for values in self.lists.values():
            size *= len(values)
        return size


@dataclass(frozen=True)
class Variant:
    """One member as it was asked for. `settings` is what tells it from the others; `places` is where in their lists its
    values stand."""

    settings: Mapping[str, Any]
    places: Mapping[str, int]
    method: MethodConfig
    hyperparameters: Hyperparameters
    template: str | None

    def blame(self, param: str | None) -> str:
        """The place in the request that an error about `param` of this member is about."""
        head, _, rest = (param or "").partition(".")
        for name in _CAUSES.get(head, (head,)):
            if name in self.places:
                tail = f".{rest}" if rest and name == head else ""
                return f"sweep.{name}.{self.places[name]}{tail}"
        return param or "sweep"


_CAUSES = {
    "method": ("method", "init"),
    "template": ("template", "num_virtual_tokens", "method"),
    "hyperparameters": NUMBERS,
    "input": ("num_virtual_tokens", "template", "method"),
    "": ("num_virtual_tokens", "template", "method"),
}
"""Which swept value may be behind an error about a field, the likeliest first."""


def variants(request: TrainRequest) -> list[Variant]:
    """The members of the request's sweep, in order.

    Raises SweepTooLarge, InvalidRequest for fewer than two and for values that stand outside the sweep too,
    CapabilityMissing for a method that is not learned step by step."""
    assert request.sweep is not None
    lists = request.sweep.lists
    if not 2 <= request.sweep.size <= MAX_MEMBERS:
        error = SweepTooLarge if request.sweep.size > MAX_MEMBERS else InvalidRequest
        raise error(f"{request.sweep.size} members; a sweep has 2 to {MAX_MEMBERS}", param="sweep")
    _check_once(request, lists)
    places = product(*(range(len(values)) for values in lists.values()))
    return [_variant(request, dict(zip(lists, at, strict=True))) for at in places]


def check_top(request: TrainRequest) -> None:
    """Raise InvalidRequest where `top_k` asks for what no sweep could give."""
    top = request.publish.top_k
    if top is None:
        return
    if request.sweep is None:
        raise InvalidRequest("`top_k` takes the best of a sweep, and there is none", param="publish.top_k")
    if top > request.sweep.size:
        raise InvalidRequest(f"the sweep has only {request.sweep.size} members", param="publish.top_k")


def _check_once(request: TrainRequest, lists: Mapping[str, Any]) -> None:
    given = {name for name in NUMBERS if getattr(request.hyperparameters, name) != "auto"}
    given |= {name for name in ("method", "template") if name in request.model_fields_set}
    for name in lists:
        if name in given:
            raise InvalidRequest(f"`{name}` stands outside the sweep, too", param=f"sweep.{name}")


def _variant(request: TrainRequest, places: Mapping[str, int]) -> Variant:
    assert request.sweep is not None
    lists = request.sweep.lists
    values = {name: lists[name][place] for name, place in places.items()}
    method: MethodConfig = values.get("method", request.method)
    if isinstance(METHODS[method.type], SearchedMethod):
        raise CapabilityMissing(
            f"`{method.type}` judges one candidate after the other and learns in no batch: give it a job of its own",
            param=f"sweep.method.{places['method']}" if "method" in places else "method",
        )
    if "init" in values:
        method = _begun(method, values["init"], f"sweep.init.{places['init']}")
    numbers = {name: values[name] for name in NUMBERS if name in values}
    told = {name: _plain(value) for name, value in values.items()}
    return Variant(
        settings=told,
        places=places,
        method=method,
        hyperparameters=request.hyperparameters.model_copy(update=numbers),
        template=values.get("template", request.template),
    )


def _begun(method: MethodConfig, init: str, param: str) -> MethodConfig:
    """The method with another `init`; what belongs to one `init` alone goes with it."""
    fields = method.model_dump(exclude_none=True) | {"init": init}
    for name in ("text", "prompt"):
        if init != name:
            fields.pop(f"init_{name}", None)
    try:
        return type(method).model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(f"`{method.type}`: {error.errors()[0]['msg']}", param=param) from None


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_none=True) if isinstance(value, Closed) else value
