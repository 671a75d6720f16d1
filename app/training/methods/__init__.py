"""The methods of learning a prompt, by the `type` a request names. A new method: one file, one line here, its test."""

from app.training.methods.base import Learner, Method, Surroundings
from app.training.methods.prompt_tuning import PromptTuning

METHODS: dict[str, Method] = {
    PromptTuning.type: PromptTuning(),
}

__all__ = ["METHODS", "Learner", "Method", "Surroundings"]
