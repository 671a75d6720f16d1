from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pretraining.documents import ANSWER, TASK, TEXT, Document, Piece, asked, running_text, whole
from pretraining.errors import WorkError
from pretraining.packing import Texts, pack_stage, read_manifest
from pretraining.recipe import Recipe
from pretraining.shards import PackedReader, write_shards
from pretraining.tokenizer import BOS, EOS, encode_documents, for_transformers, load_tokenizer
from tests.unit.pretraining.conftest import World

DOCUMENTS: tuple[Document, ...] = (
    running_text("Ünïcode — “quoted”\n\nand <s> written out </s>"),
    asked("Review: a dog runs\nSentiment:", " positive"),
    asked("It was", " great", "."),
)


@pytest.mark.parametrize("shard_tokens", [7, 64, 1 << 20])
def test_documents_when_packed_and_read_are_the_same(packed: World, tmp_path: Path, shard_tokens: int) -> None:
    tokenizer = load_tokenizer(packed.work / "tokenizer")
    encoded = encode_documents(tokenizer, DOCUMENTS)
    made = write_shards(tmp_path / "s", encoded, aligned=True, shard_tokens=shard_tokens)
    read = list(PackedReader(tmp_path / "s", made, verify=True).documents())
    assert made.documents == len(read) == len(DOCUMENTS)
    for document, (ids, kinds), (before, _) in zip(DOCUMENTS, read, encoded, strict=True):
        assert ids.tolist() == before.tolist()
        assert (ids[0], ids[-1]) == (BOS, EOS)
        assert tokenizer.decode(ids[1:-1].tolist(), skip_special_tokens=False) == whole(document)
        answer = tokenizer.decode(ids[kinds == ANSWER].tolist())
        assert answer == "".join(piece.text for piece in document if piece.kind == ANSWER)


def test_document_when_cut_at_its_answer_is_tokenised_as_in_one_piece(packed: World) -> None:
    tokenizer = load_tokenizer(packed.work / "tokenizer")
    for document, (ids, _) in zip(DOCUMENTS, encode_documents(tokenizer, DOCUMENTS), strict=True):
        assert ids[1:-1].tolist() == tokenizer.encode(whole(document), add_special_tokens=False).ids


@pytest.mark.parametrize(("before", "answer", "after"), [("It was ", " x", ""), ("It", "x", ""), ("It", " x", "y")])
def test_answer_when_it_does_not_begin_or_end_a_word_is_refused(before: str, answer: str, after: str) -> None:
    with pytest.raises(ValueError, match=r"does not begin|would go on"):
        asked(before, answer, after)


def test_window_when_it_goes_over_the_end_goes_on_at_the_begin(packed: World) -> None:
    made = read_manifest(packed.work)["nli"]
    reader = PackedReader(packed.work / "shards" / "nli", made)
    ids, _ = reader.window(made.tokens - 5, 12)
    assert ids.tolist() == [*reader.window(made.tokens - 5, 5)[0], *reader.window(0, 7)[0]]


def test_pack_when_run_again_writes_nothing_and_when_texts_change_packs_anew(world: World, recipe: Recipe) -> None:
    first = pack_stage(Texts(recipe, world.data, world.corpus), world.work)
    times = {file: file.stat().st_mtime_ns for file in world.work.rglob("*") if file.is_file()}
    again = Texts(recipe, world.data, world.corpus)
    assert pack_stage(again, world.work) == first
    assert {file: file.stat().st_mtime_ns for file in world.work.rglob("*") if file.is_file()} == times
    assert not again.seen
    with (world.data / "sst2" / "train.jsonl").open("a", encoding="utf-8") as out:
        out.write('{"text": "a new sentence that nobody has packed", "label": "positive"}\n')
    changed = pack_stage(Texts(recipe, world.data, world.corpus), world.work)
    assert changed["sentences"].documents == first["sentences"].documents + 2


def test_pack_when_done_twice_from_one_recipe_gives_the_same_digests(world: World, recipe: Recipe) -> None:
    first = pack_stage(Texts(recipe, world.data, world.corpus), world.work)
    shutil.rmtree(world.work)
    assert pack_stage(Texts(recipe, world.data, world.corpus), world.work) == first


def test_shard_when_changed_is_refused(packed: World) -> None:
    made = read_manifest(packed.work)["nli"]
    folder = packed.work / "shards" / "nli"
    file = folder / "00000.ids"
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    with pytest.raises(WorkError, match="digest"):
        PackedReader(folder, made, verify=True)
    file.write_bytes(content[:-2])
    with pytest.raises(WorkError, match="manifest"):
        PackedReader(folder, made)


def test_records_when_kept_back_are_in_no_training_document(packed: World, recipe: Recipe) -> None:
    manifest = read_manifest(packed.work)
    back, front = manifest["wikipedia.kept_back"], manifest["wikipedia"]
    assert back.documents > 0
    assert back.documents + front.documents == 50
    tokenizer = load_tokenizer(packed.work / "tokenizer")
    kept = [
        tokenizer.decode(ids.tolist()).split("\n")[0]
        for ids, _ in PackedReader(packed.work / "shards" / "wikipedia.kept_back", back).documents()
    ]
    texts = Texts(recipe, packed.data, packed.corpus)
    shown = {whole(doc).split("\n")[0] for doc in texts.documents(recipe.sources[0])}
    assert not shown & set(kept)


def test_kinds_when_packed_tell_text_from_tasks_and_answers(packed: World) -> None:
    manifest = read_manifest(packed.work)
    kinds = {
        name: set(np.unique(PackedReader(packed.work / "shards" / name, one).window(0, one.tokens)[1]).tolist())
        for name, one in manifest.items()
    }
    assert kinds["wikipedia"] == {TEXT}
    assert kinds["sentences"] == kinds["reading"] == {TASK, ANSWER}
    assert manifest["sentences"].answers >= manifest["sentences"].documents


def test_tokenizer_when_loaded_by_transformers_begins_with_bos_and_reads_back(packed: World) -> None:
    tokenizer = for_transformers(packed.work / "tokenizer", 64, lambda _: None)
    ids = tokenizer("the old dog sleeps").input_ids
    assert ids[0] == BOS
    assert tokenizer.decode(ids[1:]) == "the old dog sleeps"
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<pad>", "<mask>"]) == [0, 1, 2, 3]


def test_document_when_it_has_no_pieces_is_refused(packed: World) -> None:
    with pytest.raises(ValueError, match="no pieces"):
        encode_documents(load_tokenizer(packed.work / "tokenizer"), [(Piece("a", TEXT),), ()])
