"""An adapter's files: what is refused of folders, configurations and tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from app.errors import CapabilityMissing, ChorusError, InvalidPrompt, TooLarge
from app.interchange import adapter_files, tensor_file
from app.interchange.adapter_config import read_config
from app.interchange.adapter_files import AdapterFiles, read_folder, write_folder
from app.interchange.tensor_file import read_tensors, write_tensors

NAMES = frozenset({"prompt_embeddings"})
CONFIG = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 5, "token_dim": 8}
MODEL = save({"prompt_embeddings": torch.arange(40.0).view(5, 8)})


def test_a_written_folder_reads_back_as_it_was(tmp_path: Path) -> None:
    files = AdapterFiles(CONFIG, MODEL, "{text} so", {"good": [" good"]})
    write_folder(files, tmp_path / "new")
    assert read_folder(tmp_path / "new") == files
    bare = AdapterFiles(CONFIG, MODEL)
    write_folder(bare, tmp_path / "new")
    assert read_folder(tmp_path / "new") == bare
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_folder_with_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(InvalidPrompt, match=r"is a pickle.*chorus convert"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no adapter_config.json"),
        ({"adapter_config.json": b"{}"}, "no adapter_model.safetensors"),
        ({"adapter_config.json": b"[1]", "adapter_model.safetensors": MODEL}, "not a JSON object"),
        ({"adapter_config.json": b"{", "adapter_model.safetensors": MODEL}, "not JSON"),
        ({"adapter_config.json": b"[" * 100_000, "adapter_model.safetensors": MODEL}, "not JSON"),
        (
            {"adapter_config.json": b"{}", "adapter_model.safetensors": MODEL, "chorus.json": b'{"template": 1}'},
            "`template` is a text",
        ),
    ],
)
def test_a_folder_that_is_no_adapter_is_refused(files: dict[str, bytes], says: str, tmp_path: Path) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidPrompt, match=says):
        read_folder(tmp_path)


def test_files_beyond_their_limits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(AdapterFiles(CONFIG, MODEL), tmp_path)
    monkeypatch.setattr(adapter_files, "MAX_BLOB_BYTES", 100)
    with pytest.raises(TooLarge):
        read_folder(tmp_path)
    monkeypatch.setattr(tensor_file, "MAX_BLOB_BYTES", 100)
    with pytest.raises(TooLarge):
        read_tensors(MODEL, NAMES)


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"peft_type": "LORA"}, CapabilityMissing, "peft_type"),
        ({"peft_type": "CPT"}, CapabilityMissing, "peft_type"),
        ({"peft_type": "ADAPTION_PROMPT"}, CapabilityMissing, "peft_type"),
        ({"task_type": "SEQ_CLS"}, CapabilityMissing, "task_type"),
        ({"modules_to_save": ["score"]}, CapabilityMissing, "modules_to_save"),
        ({"peft_type": None}, InvalidPrompt, "peft_type"),
        ({"task_type": None}, InvalidPrompt, "task_type"),
        ({"num_virtual_tokens": 0}, InvalidPrompt, "num_virtual_tokens"),
        ({"num_virtual_tokens": 100_000}, InvalidPrompt, "num_virtual_tokens"),
        ({"num_virtual_tokens": "5"}, InvalidPrompt, "num_virtual_tokens"),
        ({"num_virtual_tokens": True}, InvalidPrompt, "num_virtual_tokens"),
        ({"num_transformer_submodules": 2}, InvalidPrompt, "num_transformer_submodules"),
        ({"base_model_name_or_path": 7}, InvalidPrompt, "base_model_name_or_path"),
        (
            {"peft_type": "PREFIX_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 1},
            InvalidPrompt,
            "num_transformer_submodules",
        ),
    ],
)
def test_configurations_that_no_prompt_expresses_are_refused(
    change: dict[str, Any], error: type[ChorusError], param: str
) -> None:
    with pytest.raises(error) as raised:
        read_config(CONFIG | change)
    assert raised.value.param == f"adapter_config.{param}"


def test_fields_of_other_versions_of_peft_are_passed_over() -> None:
    assert read_config(CONFIG | {"auto_mapping": None, "prompt_tuning_init": "TEXT", "invented": 1}).token_dim == 8


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (b"", "header"),
        (MODEL[:20], "header"),
        (MODEL[:-4], "not a safetensors file"),
        (MODEL + b"\0" * 8, "not a safetensors file"),
        ((1 << 60).to_bytes(8, "little") + MODEL[8:], "header"),
        (save({"other": torch.zeros(5, 8)}), "is missing"),
        (save({"prompt_embeddings": torch.zeros(5, 8), "score.weight": torch.zeros(2)}), "trained with the prompt"),
        (save({"prompt_embeddings": torch.zeros(5, 8, dtype=torch.float64)}), "F64"),
        (save({"prompt_embeddings": torch.zeros(5, 8, dtype=torch.int32)}), "I32"),
        (save({"prompt_embeddings": torch.full((5, 8), float("nan"))}), "NaN"),
        (save({"prompt_embeddings": torch.full((5, 8), float("inf"), dtype=torch.bfloat16)}), "NaN or infinity"),
        (b"PK\x03\x04" + MODEL, "chorus convert"),
        (b"\x80\x02}q\x00." + MODEL, "chorus convert"),
    ],
)
def test_tensors_that_are_not_exactly_a_prompts_are_refused(model: bytes, says: str) -> None:
    with pytest.raises(InvalidPrompt, match=says):
        read_tensors(model, NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_read_and_written_without_loss(dtype: torch.dtype) -> None:
    values = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    read = read_tensors(save({"prompt_embeddings": values}), NAMES)
    assert torch.equal(read["prompt_embeddings"].to(dtype), values)
    assert read_tensors(write_tensors(read), NAMES)["prompt_embeddings"].equal(read["prompt_embeddings"])


@given(st.integers(0, len(MODEL) - 1), st.integers(0, 255), st.integers(0, len(MODEL)))
@settings(max_examples=300, deadline=None, database=None)
def test_damaged_tensors_are_read_or_refused_and_nothing_else(at: int, byte: int, length: int) -> None:
    damaged = bytearray(MODEL)
    damaged[at] = byte
    for data in (bytes(damaged), bytes(damaged[:length])):
        try:
            read = read_tensors(data, NAMES)
        except (InvalidPrompt, TooLarge):
            continue
        assert read["prompt_embeddings"].isfinite().all()
