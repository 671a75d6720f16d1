from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.backbone import BackboneConfig, load_backbone
from app.backbone.fingerprint import fingerprint, tensor_hashes
from app.backbone.placement import parameter_count
from app.backbone.source import bundled_folder, locate
from app.errors import UnsupportedBackbone


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled_folder(), tmp_path / "model"))


def test_bundled_model_loads_on_the_fast_path_with_prompt_bos_text() -> None:
    backbone = load_backbone(BackboneConfig(device="cpu"))
    assert backbone.name == "chorus-10m"
    assert backbone.runner_name == "packed"
    assert backbone.tokenizer.adds_bos
    assert backbone.max_positions == 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_parameters_are_counted_whatever_the_files_dtype_and_number(
    tmp_path: Path, dtype: torch.dtype, shards: int
) -> None:
    for shard in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{shard}.safetensors"
        save_file({f"a{shard}": torch.zeros(7, 11, dtype=dtype), f"b{shard}": torch.zeros(5)}, tmp_path / name)
    assert parameter_count(sorted(tmp_path.glob("*.safetensors"))) == shards * (7 * 11 + 5)


def test_parameters_of_a_whole_file_beside_its_parts_are_counted_once(tmp_path: Path) -> None:
    for name in ("model.safetensors", "consolidated.safetensors"):
        save_file({"a": torch.zeros(10)}, tmp_path / name)
    assert parameter_count(sorted(tmp_path.glob("*.safetensors"))) == 10


def test_damaged_weights_are_refused_by_their_file(model_folder: Path) -> None:
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UnsupportedBackbone, match=r"model\.safetensors cannot be read"):
        load_backbone(BackboneConfig(source=str(model_folder), device="cpu"))


def test_load_imports_the_code_of_no_other_architecture() -> None:
    """They would cost memory in every process."""
    script = (
        "import sys; from app.backbone import BackboneConfig, load_backbone;"
        "load_backbone(BackboneConfig(device='cpu'));"
        "print(*(name for name in sys.modules if '.modeling_' in name and name.startswith('transformers.models.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    foreign = [name for name in done.stdout.split() if ".llama." not in name and ".auto." not in name]
    assert foreign == []


def test_folder_with_code_of_its_own_is_refused(model_folder: Path) -> None:
    (model_folder / "modeling_evil.py").write_text("raise SystemExit")
    with pytest.raises(UnsupportedBackbone, match="Python code"):
        locate(str(model_folder), None)


def test_folder_with_an_auto_map_is_refused(model_folder: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(UnsupportedBackbone, match="auto_map"):
        load_backbone(BackboneConfig(source=str(model_folder)))


def test_folder_with_pickled_weights_alone_is_refused_with_the_fix(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedBackbone, match="save_pretrained"):
        locate(str(model_folder), None)


@pytest.mark.parametrize("source", ["", "no/such/folder/at/all", "http://example.com/model", "a b/c"])
def test_source_that_is_neither_folder_nor_hub_id_is_refused(source: str) -> None:
    with pytest.raises(UnsupportedBackbone):
        locate(source or "\0", None)


@pytest.mark.parametrize(
    ("kind", "reason"), [("vit", "not a language model"), ("speech_to_text", "not a text-to-text model")]
)
def test_model_of_no_known_family_is_refused(model_folder: Path, kind: str, reason: str) -> None:
    (model_folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UnsupportedBackbone, match=reason):
        load_backbone(BackboneConfig(source=str(model_folder)))


def test_folder_whose_weights_are_another_models_is_refused(model_folder: Path) -> None:
    shape = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 4, "vocab_size": 32}
    (model_folder / "config.json").write_text(json.dumps({"model_type": "t5", **shape}))
    with pytest.raises(UnsupportedBackbone, match="the weights lack"):
        load_backbone(BackboneConfig(source=str(model_folder)))


def test_fingerprint_does_not_depend_on_sharding(model_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(model_folder / "model.safetensors")
    names = sorted(tensors)
    shards = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({name: tensors[name] for name in names[::2]}, shards[0])
    save_file({name: tensors[name] for name in names[1::2]}, shards[1])
    whole = [model_folder / "model.safetensors"]
    assert fingerprint({}, "", shards) == fingerprint({}, "", whole)


def test_fingerprint_changes_with_weights_tokenizer_and_meaningful_configuration(model_folder: Path) -> None:
    files = [model_folder / "model.safetensors"]
    base = fingerprint({"rope_theta": 1}, "t", files)
    assert fingerprint({"rope_theta": 1, "transformers_version": "9"}, "t", files) == base
    assert fingerprint({"rope_theta": 2}, "t", files) != base
    assert fingerprint({"rope_theta": 1}, "u", files) != base
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    files[0].write_bytes(bytes(data))
    assert fingerprint({"rope_theta": 1}, "t", files) != base


def test_tensor_hashes_come_from_the_cache_until_a_file_changes(model_folder: Path, tmp_path: Path) -> None:
    files = [model_folder / "model.safetensors"]
    first = tensor_hashes(files, cache=tmp_path)
    (entry,) = tmp_path.glob("tensors-*.json")
    entry.write_text(json.dumps([["from", "the", "cache", "!"]]))
    assert tensor_hashes(files, cache=tmp_path) == [["from", "the", "cache", "!"]]
    files[0].touch()
    assert tensor_hashes(files, cache=tmp_path) == first
