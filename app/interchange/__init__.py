"""Prompts that other tools have learned, and prompts for other tools: PEFT's adapters in and out, older formats into
PEFT's. Nothing that is read is ever executed: safetensors and JSON, and of pickles only what builds tensors.

    https://huggingface.co/docs/peft/developer_guides/checkpoint
"""
