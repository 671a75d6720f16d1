"""Chorus: one frozen language model, many learned prompts."""

__version__ = "0.1.0"
