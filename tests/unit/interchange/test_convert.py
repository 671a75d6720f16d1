"""Prompts of other tools become adapters, number for number; hostile files become errors, and nothing of them runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.cli import main
from app.errors import ChorusError, InvalidPrompt, InvalidRequest, TooLarge
from app.interchange.adapter_files import AdapterFiles, read_folder
from app.interchange.converting import convert
from app.interchange.formats import nemo
from app.interchange.pickle_values import Storage, TensorRef, read_values
from app.interchange.tensor_file import read_tensors
from app.interchange.torch_file import TorchFile

NAMES = frozenset({"prompt_embeddings"})
VECTORS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
TEMPLATE = "<|VIRTUAL_PROMPT_0|>{sentence}<|VIRTUAL_PROMPT_1|> sentiment: {label}"


def tensor_of(files: AdapterFiles) -> torch.Tensor:
    return read_tensors(files.model, NAMES)["prompt_embeddings"]


def table(**tasks: torch.Tensor) -> dict[str, Any]:
    """A checkpoint as NeMo 1.16 writes it."""
    weights = {f"prompt_table.{name}.prompt_embeddings.weight": of for name, of in tasks.items()}
    indices = {f"prompt_table.{name}.indices": torch.arange(of.shape[0]) for name, of in tasks.items()}
    return {"prompt_table": OrderedDict(weights | indices)}


def nemo_file(file: Path, checkpoint: Any, config: str = "", *, packed: bool = False, folder: str = "./") -> Path:
    saved = io.BytesIO()
    torch.save(checkpoint, saved)
    with tarfile.open(file, "w:gz" if packed else "w") as tar:
        for name, data in (("model_config.yaml", config.encode()), (f"{folder}model_weights.ckpt", saved.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def test_lesters_array_becomes_a_prompt_for_an_encoder(tmp_path: Path) -> None:
    np.save(tmp_path / "prompt.npy", VECTORS.numpy())
    files = convert(tmp_path / "prompt.npy")
    assert torch.equal(tensor_of(files), VECTORS)
    assert (files.config["task_type"], files.config["num_virtual_tokens"]) == ("SEQ_2_SEQ_LM", 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_caikits_tensor_becomes_a_prompt_for_a_decoder(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(VECTORS.to(dtype), tmp_path / "decoder.pt")
    (tmp_path / "config.yml").write_text("base_model_name: some/llama\nverbalizer: 'Text {x}: {{input}} Label:'\n")
    files = convert(tmp_path)
    assert torch.equal(tensor_of(files).to(dtype), VECTORS.to(dtype))
    assert files.config["base_model_name_or_path"] == "some/llama"
    assert files.template == "Text {{x}}: {text} Label:"
    assert tensor_of(convert(tmp_path / "decoder.pt")).equal(tensor_of(files))


def test_a_tensor_that_is_a_view_of_a_larger_storage_is_read_at_its_place(tmp_path: Path) -> None:
    storage = torch.arange(400.0)
    view = storage[160:].as_strided((6, 8), (10, 1))
    torch.save(torch.nn.Parameter(view), tmp_path / "decoder.pt")
    assert (tmp_path / "decoder.pt").stat().st_size > 1600  # the whole storage is in the file
    assert torch.equal(tensor_of(convert(tmp_path)), view)


def test_both_halves_of_caikit_become_an_encoder_decoders(tmp_path: Path) -> None:
    torch.save(VECTORS, tmp_path / "encoder.pt")
    torch.save(VECTORS + 1, tmp_path / "decoder.pt")
    files = convert(tmp_path)
    assert (files.config["num_transformer_submodules"], files.config["num_virtual_tokens"]) == (2, 6)
    assert torch.equal(tensor_of(files), torch.cat((VECTORS, VECTORS + 1)))


@pytest.mark.parametrize("packed", [False, True])
def test_a_prompt_of_nemos_table_keeps_its_words_and_splits(tmp_path: Path, packed: bool) -> None:
    config = (
        "language_model_path: gpt.nemo\ntask_templates:\n- taskname: mood\n"
        f"  prompt_template: '{TEMPLATE}'\n  virtual_token_splits: [4, 2]\n  answer_field: label\n"
    )
    file = nemo_file(tmp_path / "p.nemo", table(mood=VECTORS, topic=VECTORS + 1), config, packed=packed)
    files = convert(file, prompt="mood")
    assert torch.equal(tensor_of(files), VECTORS)
    assert files.template == "<prompt:4>{sentence}<prompt:2> sentiment:"
    assert convert(file, prompt="topic").template is None
    with pytest.raises(InvalidPrompt, match="'mood', 'topic'"):
        convert(file)
    with pytest.raises(InvalidPrompt, match="no prompt of 'other'"):
        convert(file, prompt="other")


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"prompt_table": {"prompt_table.prompt_table.a.b.prompt_embeddings.weight": VECTORS}},
        {"state_dict": {"model.language_model.ptuning_adapter.inference_table": VECTORS, "x": torch.zeros(2)}},
    ],
)
def test_older_and_newer_checkpoints_of_nemo_are_read(tmp_path: Path, checkpoint: Any) -> None:
    torch.save(checkpoint, tmp_path / "p.ckpt")
    assert torch.equal(tensor_of(convert(tmp_path / "p.ckpt")), VECTORS)


def test_only_the_first_ranks_weights_are_read(tmp_path: Path) -> None:
    file = nemo_file(tmp_path / "p.nemo", table(a=VECTORS), folder="mp_rank_00/")
    assert torch.equal(tensor_of(convert(file)), VECTORS)
    with pytest.raises(InvalidPrompt, match=r"no model_weights\.ckpt"):
        convert(nemo_file(tmp_path / "q.nemo", table(a=VECTORS), folder="mp_rank_01/"))


def test_a_table_that_was_never_filled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPrompt, match="all zeros"):
        convert(nemo_file(tmp_path / "p.nemo", table(a=torch.zeros(4, 8))))


def test_an_old_folder_of_peft_becomes_a_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 6, "peft_version": "0.4"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"prompt_embeddings": torch.nn.Parameter(VECTORS)}, tmp_path / "adapter_model.bin")
    assert main(["convert", str(tmp_path), str(tmp_path / "new"), "--template", "{text} so"]) == 0
    assert "PROMPT_TUNING, 6 virtual tokens" in capsys.readouterr().out
    files = read_folder(tmp_path / "new")
    assert (files.config, files.template) == (config, "{text} so")
    assert torch.equal(tensor_of(files), VECTORS)


def test_what_is_wrong_is_said_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "new")]) == 2
    assert "there is nothing at" in capsys.readouterr().err
    with pytest.raises(InvalidRequest, match="none of the files"):
        convert(tmp_path)


class Hostile:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def torch_file(file: Path, data: bytes, *, compress: bool = False, twice: bool = False) -> Path:
    """A file laid out as torch.save's, with any pickle in it."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as made:
        made.writestr("archive/data.pkl", data)
        if twice:
            made.writestr("other/data.pkl", data)
    return file


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, getattr])
def test_a_pickle_that_calls_anything_else_is_refused_and_nothing_runs(
    tmp_path: Path, function: Any, protocol: int
) -> None:
    made = tmp_path / "made"
    arguments = {os.system: (f"mkdir {made}",), os.mkdir: (str(made),), eval: (f"__import__('os').mkdir('{made}')",)}
    hostile = {"prompt_embeddings": VECTORS.tolist(), "x": Hostile(function, *arguments.get(function, (1, "real")))}
    with pytest.raises(InvalidPrompt, match="mentions"):
        convert(torch_file(tmp_path / "decoder.pt", pickle.dumps(hostile, protocol)))
    assert not made.exists()


def test_objects_of_known_libraries_stay_closed(tmp_path: Path) -> None:
    """`omegaconf` is not even installed here: its objects are passed over by name."""
    config = b"comegaconf.dictconfig\nDictConfig\n)\x81}X\x01\x00\x00\x00aK\x01sb"
    boxed = b"\x80\x02}(X\x01\x00\x00\x00h" + config + b"X\x01\x00\x00\x00vK\x02u."
    assert read_values(boxed)["v"] == 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: torch_file(file, pickle.dumps({}, 2), compress=True), "compressed"),
        (lambda file: torch_file(file, pickle.dumps({}, 2), twice=True), "laid out differently"),
        (lambda file: torch_file(file, pickle.dumps({}, 2)), "something else than one tensor"),
        (lambda file: torch_file(file, b"\x80\x02"), "not a pickle"),
        (lambda file: torch_file(file, b"\x80\x02N0."), "POP"),
        (lambda file: torch_file(file, b"\x80\x02S'\\q'\n."), "not a pickle"),  # an escape that Python deprecates
        (lambda file: file.write_bytes(b"PK\x03\x04"), "not a file of torch.save"),
        (lambda file: torch.save(VECTORS, file, _use_new_zipfile_serialization=False), "before 1.6"),
        (lambda file: torch.save(VECTORS.double(), file), "other numbers"),
        (lambda file: torch.save(torch.full((2, 2), float("nan")), file), "NaN"),
        (lambda file: torch.save(torch.zeros(8), file), r"\[P, H\]"),
    ],
)
def test_files_that_are_no_prompts_are_refused(tmp_path: Path, make: Any, says: str) -> None:
    make(tmp_path / "decoder.pt")
    with pytest.raises(InvalidPrompt, match=says):
        convert(tmp_path / "decoder.pt")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (45, (2, 2), (2, 1)),
        (0, (7, 8), (8, 1)),
        (0, (2, 2), (1 << 40, 1)),
        (1 << 62, (1, 1), (1, 1)),
        (0, (0, 8), (8, 1)),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    tmp_path: Path, offset: int, size: tuple[int, int], stride: tuple[int, int]
) -> None:
    torch.save(VECTORS, tmp_path / "decoder.pt")
    opened = TorchFile(tmp_path / "decoder.pt")
    with pytest.raises(InvalidPrompt, match="beyond"):
        opened.tensor(TensorRef(Storage("F32", "0", 48), offset, size, stride))
    with pytest.raises(TooLarge):
        opened.tensor(TensorRef(Storage("F32", "0", 48), 0, (1 << 20, 1 << 20), (0, 0)))


def test_references_that_double_forty_times_take_no_time() -> None:
    """A list of two of the list before it, forty times over: 2^40 entries if anything unfolded it."""
    nested: list[Any] = []
    for _ in range(40):
        nested = [nested, nested]
    assert len(read_values(pickle.dumps(nested, 2))) == 2
    unnamed = pickle.dumps(nested, 4)[:-1] + pickle.dumps("x", 4)[2:-1] + b"\x93."
    with pytest.raises(InvalidPrompt, match="no name"):
        read_values(unnamed)


def test_arrays_that_are_pickles_or_promise_too_much_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "object.npy", np.array([Hostile(os.mkdir, str(tmp_path / "made"))], dtype=object))
    np.save(tmp_path / "double.npy", np.zeros((2, 2)))
    head = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000), }".ljust(
        117
    )
    (tmp_path / "promise.npy").write_bytes(head + b"\n" + b"\0" * 16)
    (tmp_path / "none.npy").write_bytes(b"no array")
    for name in ("object", "double", "promise", "none"):
        with pytest.raises(InvalidPrompt):
            convert(tmp_path / f"{name}.npy")
    assert not (tmp_path / "made").exists()


def test_an_archive_that_swells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nemo, "MAX_ARCHIVE_BYTES", 1 << 20)
    (tmp_path / "bomb.nemo").write_bytes(gzip.compress(b"\0" * (64 << 20)))
    with pytest.raises(TooLarge):
        convert(tmp_path / "bomb.nemo")


def test_names_that_climb_out_of_an_archive_write_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    file = nemo_file(inside / "p.nemo", table(a=VECTORS), folder="../../")
    convert(file)
    assert [one.name for one in inside.iterdir()] == ["p.nemo"]
    assert [one.name for one in tmp_path.iterdir()] == ["inside"]


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    torch.save(table(a=VECTORS), tmp_path / "outside")
    with tarfile.open(tmp_path / "p.nemo", "w") as tar:
        member = tarfile.TarInfo("model_weights.ckpt")
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "outside")
        tar.addfile(member)
    with pytest.raises(InvalidPrompt, match=r"no model_weights\.ckpt"):
        convert(tmp_path / "p.nemo")


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


PICKLE = zipfile.ZipFile(io.BytesIO(saved(table(a=VECTORS)))).read("archive/data.pkl")
FILE = saved(VECTORS)


@given(st.integers(0, len(PICKLE) - 1), st.binary(min_size=1, max_size=3))
@settings(max_examples=400, deadline=None, database=None)
def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(at: int, patch: bytes) -> None:
    try:
        read_values(PICKLE[:at] + patch + PICKLE[at + len(patch) :])
    except InvalidPrompt:
        return


@given(st.integers(0, len(FILE) - 1), st.binary(min_size=1, max_size=4))
@settings(max_examples=400, deadline=None, database=None)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(at: int, patch: bytes) -> None:
    try:
        opened = TorchFile(io.BytesIO(FILE[:at] + patch + FILE[at + len(patch) :]))
        if isinstance(opened.values, TensorRef):
            opened.tensor(opened.values)
    except ChorusError:
        return
