"""The families beside decoders: encoder-decoders (`seq2seq`) and masked language models (`masked`).

Each has a forward over many rows at once, a runner for the engine, and scores for training; a probe at load holds the
forward to the model's own, as probe.py does for decoders.
"""
