"""What a model is trained to do, one file an objective behind one interface (`base.Objective`).

| objective | model | what is to be predicted |
|---|---|---|
| `causal` | decoder, Llama | the next token |
| `masked` | BERT | hidden tokens, in place |
| `spans` | encoder-decoder, T5 | hidden spans, by the decoder |
| `prefix` | encoder-decoder, T5 | how a text goes on, by the decoder |
"""

from __future__ import annotations

from tokenizers import Tokenizer

from pretraining.objectives.base import Losses, Objective, Prepared
from pretraining.objectives.causal import Causal
from pretraining.objectives.masked import Masked
from pretraining.objectives.prefix import Prefix
from pretraining.objectives.spans import Spans
from pretraining.recipe import Recipe

OBJECTIVES: dict[str, type[Objective]] = {one.name: one for one in (Causal, Masked, Spans, Prefix)}

__all__ = ["OBJECTIVES", "Losses", "Objective", "Prepared", "kind_of_model", "objectives_of"]


def objectives_of(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Objective]:
    """The recipe's objectives by name, in the order they are learnt. Raises RecipeError."""
    return {stretch.objective: OBJECTIVES[stretch.objective](recipe, tokenizer) for stretch in recipe.stretches()}


def kind_of_model(recipe: Recipe) -> type[Objective]:
    """One of the recipe's objectives: they train one model, and each can make it."""
    return OBJECTIVES[recipe.stretches()[0].objective]
