"""A model's folder is read with the tokenizer its file describes, whatever the model's type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from app.backbone.tokenizer_files import load_tokenizer
from app.errors import UnsupportedBackbone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Qwen2 model's folder whose tokenizer knows whole words only."""
    Qwen2Config().save_pretrained(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(8)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    return tmp_path


def test_tokenizer_of_the_general_class_reads_as_its_file_says(folder: Path) -> None:
    assert load_tokenizer(folder)("w3 w5 what").input_ids == [3, 5, 0]


def test_tokenizer_that_finds_no_token_is_refused_with_its_class(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(UnsupportedBackbone, match=r"Qwen2.*tokenizer_class"):
        load_tokenizer(folder)


def test_tokenizer_without_a_configuration_is_found_by_the_models_type(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UnsupportedBackbone):  # Qwen2's own kind, which this vocabulary is not of
        load_tokenizer(folder)
