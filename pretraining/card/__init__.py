"""The stage `card`: a model card for an exported backbone, with a picture of its losses, from what the run recorded.

records.py    the run's files read and checked against each other
duration.py   how long training took, and how well that is known
picture.py    losses by source over tokens, as SVG
head.py       the card's front matter, what the model is, how it is used, and what it cannot do
data.py       its texts: sources, licences, what was dropped
results.py    recipe, compute, losses, evaluations, tuned prompts
writing.py    Markdown's tables, and numbers as people read them
"""

from __future__ import annotations

import re
from pathlib import Path

from pretraining.card.data import data_lines
from pretraining.card.head import front_matter, limits_lines, what_lines
from pretraining.card.picture import loss_picture
from pretraining.card.records import Run, read_run
from pretraining.card.results import compute_lines, evaluation_lines, loss_lines, prompt_lines, recipe_lines
from pretraining.files import write_atomically
from pretraining.place import Place
from pretraining.recipe import Recipe

CARD, PICTURE = "README.md", "loss.svg"


def write_card(recipe: Recipe, place: Place, model: Path, out: Path, *, prompts: Path | None = None) -> Path:
    """Write `README.md` and `loss.svg` of the exported folder `model` into `out`; the card's file. The same records
    give the same bytes.

    Raises WorkError if a stage's record is missing, or is of another recipe or other texts than the model.
    """
    run = read_run(recipe, place, model, prompts)
    write_atomically(out / PICTURE, loss_picture(run).encode())
    write_atomically(out / CARD, card_text(run).encode())
    for name in (CARD, PICTURE):
        (out / name).chmod(0o644)
    return out / CARD


def card_text(run: Run) -> str:
    sections = [
        [*front_matter(run), *what_lines(run)],
        data_lines(run),
        recipe_lines(run),
        compute_lines(run),
        loss_lines(run, PICTURE),
        evaluation_lines(run),
        prompt_lines(run),
        limits_lines(run),
    ]
    text = "\n\n".join("\n".join(lines) for lines in sections if lines)
    return re.sub(r"\n{3,}", "\n\n", text) + "\n"
