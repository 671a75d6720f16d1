from __future__ import annotations

import pytest

from pretraining.overlap import Protected
from pretraining.packing import Texts, pack_stage
from pretraining.recipe import Recipe
from tests.unit.pretraining.conftest import World, write_rows

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
SHORT = "a stone bridge over a quiet stream"


def protected(*rows: dict[str, str]) -> Protected:
    index = Protected(13)
    for row in rows:
        index.add("set/test", row)
    index.freeze()
    return index


def test_text_when_it_shares_thirteen_words_overlaps() -> None:
    index = protected({"text": LONG, "label": "x"})
    assert index.overlaps("Before: TWO three, four five six seven eight nine ten eleven twelve thirteen - fourteen.")
    assert index.found == {"set/test": 1}


def test_text_when_it_shares_twelve_words_does_not_overlap() -> None:
    index = protected({"text": LONG})
    assert index.overlaps("three four five six seven eight nine ten eleven twelve thirteen fourteen") is None


def test_text_when_it_holds_a_short_row_in_full_overlaps() -> None:
    assert protected({"text": SHORT}).overlaps(f"He saw {SHORT}, and wept.")
    assert protected({"text": SHORT}).overlaps("He saw a stone bridge over a quiet") is None


def test_hypothesis_when_short_may_be_shared_but_the_whole_pair_may_not() -> None:
    index = protected({"premise": LONG, "hypothesis": SHORT, "label": "neutral"})
    assert index.overlaps("Another premise about other things", SHORT) is None
    assert index.overlaps("something else altogether here now", LONG)
    pair = protected({"premise": "a man sits", "hypothesis": "he sits", "label": "entailment"})
    assert pair.overlaps("A man sits.", "He sits.")
    assert pair.overlaps("A man sits.", "He runs.") is None


def test_short_row_when_equal_overlaps_and_when_contained_does_not() -> None:
    index = protected({"text": "a good film", "label": "positive"})
    assert index.overlaps("A good film!")
    assert index.overlaps("a good film for all") is None


def test_label_when_equal_is_not_text() -> None:
    assert protected({"text": "alpha beta", "label": "gamma"}).overlaps("gamma") is None


def test_index_when_n_is_not_above_the_short_length_is_refused() -> None:
    with pytest.raises(ValueError, match="not above"):
        Protected(6)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_pack_when_a_row_is_planted_in_all_sources_drops_those_and_says_so(
    world: World, recipe: Recipe, split: str
) -> None:
    planted = (
        "seventeen purple elephants were quietly reciting poems to an astonished crowd beneath the northern lights"
    )
    write_rows(world.data / "sst2" / f"{split}.jsonl", [{"text": planted, "label": "positive"}])
    with (world.corpus / "wikipedia.txt").open("a", encoding="utf-8") as out:
        out.write(f"\n\x1e\nA planted article\nIt says that {planted}. And more of it.")
    with (world.data / "snli" / "train.jsonl").open("a", encoding="utf-8") as out:
        out.write('{"premise": "He said: ' + planted + '", "hypothesis": "Elephants!", "label": "neutral"}\n')
    texts = Texts(recipe, world.data, world.corpus)
    pack_stage(texts, world.work)
    report = texts.report()
    assert report["dropped"] == {"wikipedia": 1, "snli": 1}
    assert report["overlapped"] == {f"sst2/{split}": 2}
    kept = (piece.text for source in recipe.sources for doc in texts.documents(source) for piece in doc)
    assert not [text for text in kept if "purple" in text]
