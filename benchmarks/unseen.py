"""Two tasks cut from sets that pretraining never sees, so that no prompt for them can lean on something asked before.

`families`: does a description of a place, written by people from facts (E2E), say that it is for families? Its answer
is one of those facts: yes, no, or unsaid where they do not name it. `same-disease`: are two names of one disease
(Disease Ontology)? Half of the pairs are a concept's name and a synonym of it; the others that name and another
concept's, chosen to share about as many words with it, so that counting common words tells little.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.compare.tasks import TaskFiles
from benchmarks.starters.rows import Row, read_rows

SEED = 20
SHARES = {"test": 0.2, "dev": 0.1}
FAMILIES = re.compile(r"familyFriendly\[(yes|no)\]")
REMARKS = re.compile(r"\s*(\((disorder|finding|diagnosis)\)|\[[^\]]*\]|\bNOS\b|\(?\bDO NOT USE\b.*)", re.IGNORECASE)
"""What records of an ontology add to a name: it would tell a synonym from a name."""


@dataclass(frozen=True)
class Cut:
    """A task, and how its rows are made of the folder of data sets: by split."""

    name: str
    template: str
    words: Mapping[str, str]
    rows: Callable[[Path], dict[str, list[Row]]]


def write_rows(data: Path, folder: Path, cuts: Iterable[Cut]) -> None:
    """Write the tasks' rows below `folder`, where `files_of` looks for them; the same bytes each time."""
    for cut in cuts:
        (folder / cut.name).mkdir(parents=True, exist_ok=True)
        for split, rows in cut.rows(data).items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / cut.name / f"{split}.jsonl").write_text(text, encoding="utf-8")


def files_of(cut: Cut, root: Path) -> TaskFiles:
    folder = root / cut.name
    return TaskFiles(
        name=cut.name,
        data=folder / "train.jsonl",
        dev=folder / "dev.jsonl",
        test=folder / "test.jsonl",
        template=cut.template,
        verbalizer={label: [word] for label, word in cut.words.items()},
    )


def family_rows(data: Path) -> dict[str, list[Row]]:
    """Splits as published. Of dev facts every description is a row, of test facts the first."""
    found: dict[str, list[Row]] = {"train": [], "dev": [], "test": []}
    for split, rows in found.items():
        for row in read_rows(data / "e2e" / f"{split}.jsonl"):
            said = FAMILIES.search(row["input"])
            texts = [row["output"]] if "output" in row else row["references"]
            label = said[1] if said else "unsaid"
            rows += [{"text": text, "label": label} for text in texts[: 1 if split == "test" else None]]
    return found


def disease_rows(data: Path) -> dict[str, list[Row]]:
    """A concept's pairs are in one split. Concepts are dealt out by chance, with a fixed seed; a row's other concept is
    of the same split."""
    concepts = [_names(one) for one in read_rows(data / "disease_ontology" / "concepts.jsonl")]
    chance = random.Random(SEED)
    chance.shuffle(concepts)
    found: dict[str, list[Row]] = {}
    begin = 0
    for split, share in (*SHARES.items(), ("train", 1.0)):
        end = len(concepts) if split == "train" else begin + round(share * len(concepts))
        found[split] = list(_pairs(concepts[begin:end], chance))
        chance.shuffle(found[split])
        begin = end
    return found


def _names(concept: Row) -> tuple[str, ...]:
    """Its name and synonyms, without remarks, each once whatever its letters' case."""
    names: dict[str, str] = {}
    for name in (str(concept["name"]), *concept["synonyms"]):
        plain = REMARKS.sub("", name).strip(" ,").lower()
        if plain:
            names.setdefault(" ".join(_words(plain)), plain)
    return tuple(names.values())


def _pairs(concepts: Sequence[tuple[str, ...]], chance: random.Random) -> Iterator[Row]:
    """For each concept with synonyms two rows: one of its own, one of another's, in an order of chance."""
    holders: dict[str, list[int]] = defaultdict(list)
    for index, names in enumerate(concepts):
        for word in {word for name in names for word in _words(name)}:
            holders[word].append(index)
    for index, names in enumerate(concepts):
        if len(names) < 2:
            continue
        first, second = names[0], chance.choice(names[1:])
        other = _as_near(concepts, holders, index, _overlap(first, second), chance)
        for pair, label in (((first, second), "same"), ((first, other), "other")):
            one, two = chance.sample(pair, 2)
            yield {"first": one, "second": two, "label": label}


def _as_near(
    concepts: Sequence[tuple[str, ...]],
    holders: Mapping[str, Sequence[int]],
    index: int,
    wanted: float,
    chance: random.Random,
) -> str:
    """A name of another concept whose overlap with this one's name is nearest to `wanted`."""
    own = set(concepts[index])
    near = {other for word in _words(concepts[index][0]) for other in holders[word]}
    near |= set(chance.sample(range(len(concepts)), min(20, len(concepts))))
    names = [name for other in sorted(near - {index}) for name in concepts[other] if name not in own]
    chance.shuffle(names)  # among equals any
    return min(names, key=lambda name: abs(_overlap(concepts[index][0], name) - wanted))


def _overlap(one: str, two: str) -> float:
    """Words in common, of all words of both."""
    first, second = set(_words(one)), set(_words(two))
    return len(first & second) / max(1, len(first | second))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


CUTS = (
    Cut(
        "families",
        "<prompt:20>{text}\nFor families:",
        {"yes": " yes", "no": " no", "unsaid": " unknown"},
        family_rows,
    ),
    Cut(
        "same-disease",
        "<prompt:20>First: {first}\nSecond: {second}\nSame:",
        {"same": " yes", "other": " no"},
        disease_rows,
    ),
)
