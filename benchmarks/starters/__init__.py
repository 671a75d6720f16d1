"""Train the starter prompts through the service itself and write them to `prompt_store/starters/`.

    python -m benchmarks.starters --data DIR [--corpus DIR] [--task sentiment …] [--budget once] [--state FOLDER]

DIR of `--data` holds sst2, snli, mnli, ag_news, trec, qqp, subj and e2e as JSON lines, DIR of `--corpus` the
encyclopedia that pretraining reads. Each prompt is trained by `POST /v1/train` on a fresh service, chosen on dev rows,
then asked the test rows through `POST /v1/generate`; blob, task and card (scores with intervals, data and licence) are
what ships. No row of the data is stored.
"""

from benchmarks.starters.recipes import RECIPES, Recipe
from benchmarks.starters.rows import read_rows

__all__ = ["RECIPES", "Recipe", "read_rows"]
