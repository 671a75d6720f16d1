"""How a small backbone is made from text: tokenizer, packed shards, training, evaluation, export.

A workshop beside the service: nothing here is imported by `app`, and the wheel does not hold it. `docs/pretraining.md`
tells what the stages are and why; `python -m pretraining --help` runs them.
"""
