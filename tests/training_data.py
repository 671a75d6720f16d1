"""Small training sets for tests, and requests over them."""

from __future__ import annotations

from typing import Any

from app.training.requests import TrainRequest

LEASE_S = 0.3

_THINGS = ("door", "lamp", "table", "garden", "window", "kettle", "letter", "bridge")
_GOOD = ("It is wonderful", "I love it", "It works so well", "A great joy")
_BAD = ("It is terrible", "I hate it", "It never works", "A sad waste")


def mood_rows(count: int = 16) -> list[dict[str, str]]:
    """Rows of two labels that a language model tells apart easily."""
    return [
        {
            "text": f"The {_THINGS[n % 8]} number {n}. {(_GOOD if n % 2 else _BAD)[n // 2 % 4]}.",
            "label": "good" if n % 2 else "bad",
        }
        for n in range(count)
    ]


def mood_request(task: str = "mood", *, count: int = 16, **more: Any) -> TrainRequest:
    return TrainRequest.model_validate({"task": task, "training_data": {"inline": mood_rows(count)}} | more)


def short_request(task: str = "mood", *, steps: int = 4, count: int = 16, **more: Any) -> TrainRequest:
    """A job of a few small steps: each epoch is `count * 0.8 / 4` steps of four rows."""
    numbers = {"batch_size": 4, "n_epochs": steps / 4, "num_virtual_tokens": 4, "seed": 1}
    return mood_request(task, count=count, **({"hyperparameters": numbers} | more))
