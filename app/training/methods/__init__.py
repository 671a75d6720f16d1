"""The methods of finding a prompt. A new method: one file, one line here, its test; `docs/methods.md` tells more."""

from importlib import import_module

from app.training.methods.base import LearnedMethod, Learner, Method, MethodConfig, SearchedMethod, Surroundings

_FILES = (
    "prompt_tuning",
    "residual",
    "p_tuning",
    "prefix_tuning",
    "multitask",
    "spot",
    "hard",
    "prune",
)

METHODS: dict[str, Method] = {name: import_module(f"{__name__}.{name}").METHOD for name in _FILES}
"""By the `type` that a request names, which is the file's name too."""

DEFAULT = _FILES[0]

__all__ = [
    "DEFAULT",
    "METHODS",
    "LearnedMethod",
    "Learner",
    "Method",
    "MethodConfig",
    "SearchedMethod",
    "Surroundings",
]
