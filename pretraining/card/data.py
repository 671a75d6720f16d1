"""The card's section on texts: by source what was read and how often, by set the licence and what was dropped."""

from __future__ import annotations

from pretraining.card.records import Run
from pretraining.card.writing import millions, table
from pretraining.packing import KEPT_BACK
from pretraining.recipe import Source

UNKNOWN = "not recorded in the recipe"


def data_lines(run: Run) -> list[str]:
    overlap = run.manifest["overlap"]
    seen, dropped = sum(overlap["seen"].values()), sum(overlap["dropped"].values())
    return [
        "## Data and licences",
        "",
        "Rights in the texts stay with their owners. Running text is read as it stands; exercises word a row anew in"
        " each pass over it. Tokens read are those of the windows that the mixture drew, up to the step exported.",
        *table(
            ("source", "made of", "documents", "tokens packed", "passes in them", "tokens read", "times read"),
            [_source(run, source) for source in run.recipe.sources],
        ),
        *table(("texts", "what they are", "licence", "read", "dropped by overlap"), _texts(run)),
        "### Dev and test rows, and sets held out, kept out of the texts",
        "",
        f"Every text was compared with all dev and test rows at hand and with every row of the sets held out"
        f" ({', '.join(run.provenance['held_out']) or 'none'}). A text is dropped if it shares {overlap['ngram']} words"
        " in sequence with such a row, holds a shorter protected text in full, or equals one; letter case and"
        f" punctuation aside. Of {seen:,} texts {dropped:,} were dropped ({100 * dropped / max(seen, 1):.1f} %).",
        *table(
            ("protected rows of", "training texts that overlapped them"),
            [(name, f"{count:,}") for name, count in overlap["overlapped"].items()],
        ),
        *([f"**Caution.** {run.recipe.card.caution}", ""] if run.recipe.card.caution else []),
        f"Beside that, {_kept_back(run)} of running text are kept back from training; evaluation reads them.",
    ]


def _source(run: Run, source: Source) -> tuple[str, ...]:
    packed, read = run.manifest["sources"][source.name], run.shares[source.name]
    if source.file:
        made_of = "running text"
    elif source.sets:
        made_of = f"exercises from {', '.join(source.sets)}"
    else:
        made_of = f"exercises without labels from {', '.join(source.corpora)}"
    return (
        source.name,
        made_of,
        f"{packed['documents']:,}",
        millions(packed["tokens"]),
        str(source.passes) if source.sets else "1",
        millions(read),
        f"{read / max(packed['tokens'], 1):.2f}",
    )


def _texts(run: Run) -> list[tuple[str, ...]]:
    origins = {origin.name: origin for origin in run.recipe.origins}
    overlap = run.manifest["overlap"]
    rows: list[tuple[str, ...]] = []
    for name, seen in overlap["seen"].items():
        origin, dropped = origins.get(name), overlap["dropped"].get(name, 0)
        told = (origin.title, origin.licence) if origin else (UNKNOWN, UNKNOWN)
        rows.append((name, *told, f"{seen:,}", f"{dropped:,}"))
    return rows


def _kept_back(run: Run) -> str:
    kept = [one for name, one in run.manifest["sources"].items() if name.endswith(KEPT_BACK)]
    return (
        f"{sum(one['documents'] for one in kept):,} documents ({millions(sum(one['tokens'] for one in kept))} tokens)"
    )
