"""What kind of thing an encyclopedia's article describes, read off its first sentence: a rule, not anybody's labels.

The rule wants a sentence of the form "X is/was a … NOUN …" whose first noun phrase ends with one of the nouns below.
It says nothing rather than guess: of "a film director" or "a novelist and painter" there is no label,
nor where a class is described, as in "An airline is a company".
"""

from __future__ import annotations

import re

from pretraining.corpus import sentences

NOUNS: dict[str, tuple[str, ...]] = {
    "city": ("city", "town", "village", "municipality"),
    "region": ("county", "province", "region", "district", "prefecture"),
    "country": ("country",),
    "water": ("river", "lake", "sea", "bay", "strait", "tributary"),
    "company": ("company", "manufacturer", "corporation", "airline", "retailer"),
    "band": ("band",),
    "film": ("film",),
    "book": ("novel", "novella", "book"),
    "game": ("game",),
    "language": ("language",),
    "substance": ("chemical element", "compound", "mineral", "drug", "alloy", "metal"),
    "species": ("genus", "species", "breed", "plant", "tree", "shrub", "bird", "fish", "mammal"),
    "writer": ("writer", "novelist", "author", "poet", "playwright", "dramatist"),
    "actor": ("actor", "actress", "comedian"),
    "musician": ("musician", "composer", "singer", "singer-songwriter", "guitarist", "pianist", "conductor"),
    "artist": ("painter", "sculptor", "artist", "illustrator"),
    "politician": ("politician", "statesman", "diplomat"),
    "ruler": ("king", "queen", "emperor", "empress", "pharaoh", "sultan"),
    "scientist": ("physicist", "chemist", "mathematician", "astronomer", "biologist", "scientist", "botanist"),
}  # fmt: skip
"""Label → the nouns that give it."""

LABEL_OF = {noun: label for label, nouns in NOUNS.items() for noun in nouns}

_ODD_PLURALS = {"genus": "genera", "bay": "bays", "statesman": "statesmen", "species": "species"}
_BRACKETS = re.compile(r"\s*\([^()]*\)")
_DEFINED = re.compile(
    r"^(?!An? |In )[^.;:]{2,120}?,? (?:is|was|are|were) (?P<article>(?:an?|the|one of the) )?(?P<rest>[^.;:]+)"
)
_PHRASE_END = re.compile(
    r" (?:who|whose|that|which|where|when|in|on|off|from|by|at|for|to|of|as|with|within|located|situated|based|lying|"
    r"born|known|used|spoken|set|written|directed|starring|released|published|produced|developed|created|made|founded|owned|"
    r"formed|consisting|played|belonging|headquartered|during|between|along|near|and is|and was|but)\b| [–—-] |[(\"]"
)
_PARTS = re.compile(r", (?:and |or )?| and | or |/")
_WITHOUT_ARTICLE = ("ruler",)  # "was King of"; of others, "is language that …" tells of no language
_OTHER_SENSES = re.compile(
    r"\b(?:fictional|hypothetical|proposed|phantom|legendary|mythical|television|tv|radio|"
    r"programming|markup|scripting|assembly|query|description|formal|machine|sign|"
    r"recording|championship|media|comic|night)\b",
    re.IGNORECASE,
)
_NOT_ITSELF = re.compile(
    r"^(?:List|Lists|Index|Outline|Geography|Economy|Politics|History|Military|Demographics?|Transport|Transportation|"
    r"Communications|Telecommunications|Foreign relations|Culture|Religion|Government|Flag|Music|Education|Armed)\b",
)


def kind_of(title: str, first: str) -> str | None:
    """The label of an article with this title and first sentence; None where the rule has nothing to say."""
    if _NOT_ITSELF.match(title):
        return None
    found = _DEFINED.match(_BRACKETS.sub("", _BRACKETS.sub("", first)))
    if not found:
        return None
    phrase = _PHRASE_END.split(found["rest"])[0]
    if _OTHER_SENSES.search(phrase):
        return None
    heads = [_head(part) for part in _PARTS.split(phrase) if part.strip()]
    if not heads or heads[0] not in LABEL_OF:
        return None
    labels = {LABEL_OF[head] for head in heads if head in LABEL_OF}
    label = labels.pop() if len(labels) == 1 else None
    return label if found["article"] or label in _WITHOUT_ARTICLE else None


def told_apart(record: str) -> tuple[str, str, list[str]]:
    """An article's title, its first sentence and the sentences behind it; empty where it has none."""
    title, _, body = record.partition("\n")
    found = sentences(body)
    return title.strip(), (found[0] if found else ""), found[1:]


def gives_away(sentence: str) -> bool:
    """Whether a sentence holds any label's noun. Leaving out those of the row's own label alone would give it away."""
    return _ANY_NOUN.search(sentence) is not None


def _head(part: str) -> str:
    """The last word of a noun phrase, or the last two where they are a noun of the list."""
    words = [word.strip(",'\"“”").lower() for word in part.split()]
    pair = " ".join(words[-2:])
    return pair if pair in LABEL_OF else words[-1]


def _plural(noun: str) -> str:
    if noun in _ODD_PLURALS:
        return _ODD_PLURALS[noun]
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("ss", "sh")) else "s")


_ANY_NOUN = re.compile(
    r"\b(?:"
    + "|".join(sorted({"element", "elements", *LABEL_OF, *map(_plural, LABEL_OF)}, key=len, reverse=True))
    + r")\b",
    re.IGNORECASE,
)
