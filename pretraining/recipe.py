"""The recipe: a TOML file that says everything a run depends on, read into frozen dataclasses and checked.

Two runs of one recipe on the same data make the same shards, and on the same machine the same model. A recipe may be
another with changes: `extends` names the other's file, beside its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pretraining.errors import RecipeError

T = TypeVar("T")

FAMILIES = {"causal": "causal", "masked": "masked", "spans": "seq2seq", "prefix": "seq2seq"}
"""The objectives, and of which kind of model each is."""

_SAVING = ("log_every", "checkpoint_every", "keep_at", "evaluate_every")


@dataclass(frozen=True)
class TokenizerRecipe:
    vocabulary: int
    sample_chars: int  # of each source, at most


@dataclass(frozen=True)
class Shape:
    """Of a Llama-architecture decoder with tied embeddings, a BERT, or each side of a T5 (`rope_theta` is Llama's)."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    context: int
    rope_theta: float = 10_000.0


@dataclass(frozen=True)
class PackRecipe:
    ngram: int = 13
    kept_back: float = 0.004  # share of records that only evaluation sees


@dataclass(frozen=True)
class Source:
    """`file` for a corpus; `sets` with `passes` for exercises; `corpora` for exercises made from running text."""

    name: str
    file: str = ""
    sets: tuple[str, ...] = ()
    passes: int = 1
    corpora: tuple[str, ...] = ()

    @property
    def aligned(self) -> bool:
        """Whether windows begin with a document: exercises lose their sense when their begin is cut off."""
        return not self.file


@dataclass(frozen=True)
class Origin:
    """Where the texts of a corpus or a data set are from, and under which terms. For people: nothing depends on it."""

    name: str
    title: str
    licence: str


@dataclass(frozen=True)
class CardRecipe:
    """What the model card's head says, in the terms of the Hugging Face Hub; `caution` is about the overlap check."""

    language: str = "en"
    licence: str = "other"
    licence_name: str = ""
    caution: str = ""


@dataclass(frozen=True)
class Phase:
    """A stretch of training, up to the share `until` of all steps, with a mixture of its own, and an `objective` where
    that is not the recipe's."""

    until: float
    rows: int
    length: int
    answer_weight: float
    task_weight: float
    mixture: Mapping[str, float]
    objective: str = ""


class Stretch(NamedTuple):
    """Steps from `begin` up to, not including, `end` that learn one thing: the learning rate's schedule is theirs, so
    that the model is finished after each."""

    objective: str
    begin: int
    end: int


@dataclass(frozen=True)
class TrainRecipe:
    steps: int
    warm_up: int = 100
    decay: float = 0.4  # share of the steps, at the end
    final: float = 0.02  # of the learning rate, at the last step
    matrices: str = "muon"  # or "adamw": what optimizes the matrices inside the layers
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    matrix_weight_decay: float = 0.02
    momentum: float = 0.95
    clip: float = 1.0
    average: float = 0.998  # decay of the moving average of the weights, a step
    precision: str = "bf16"
    attention: str = "sdpa"  # or "eager": faster on a CPU, if compiled
    part_tokens: int = 0  # tokens computed at a time, at most, by whole rows; 0: the whole batch
    compile: bool = True
    log_every: int = 20
    checkpoint_every: int = 200
    keep_at: tuple[float, ...] = ()  # shares of the steps whose checkpoints stay
    evaluate_every: int = 1000


@dataclass(frozen=True)
class Probe:
    """A zero-shot question to dev rows: `wording` with `{field}`s, and a word for each label."""

    data: str
    wording: str
    words: Mapping[str, str]
    rows: int = 400


@dataclass(frozen=True)
class Recipe:
    name: str
    seed: int
    held_out: tuple[str, ...]
    tokenizer: TokenizerRecipe
    shape: Shape
    pack: PackRecipe
    sources: tuple[Source, ...]
    phases: tuple[Phase, ...]
    train: TrainRecipe
    probes: tuple[Probe, ...]
    objective: str = "causal"
    origins: tuple[Origin, ...] = ()
    card: CardRecipe = CardRecipe()

    def objective_of(self, phase: Phase) -> str:
        return phase.objective or self.objective

    def phase_ends(self) -> list[int]:
        """The first step behind each phase: a step is of a phase while its share of all steps is below `until`."""
        steps = self.train.steps
        near = (int(phase.until * steps) - 1 for phase in self.phases)
        return [
            next(step for step in range(max(0, low), steps + 1) if step / steps >= phase.until)
            for low, phase in zip(near, self.phases, strict=True)
        ]

    def stretches(self) -> tuple[Stretch, ...]:
        """Phases of one objective that follow each other are one."""
        found: list[Stretch] = []
        for phase, end in zip(self.phases, self.phase_ends(), strict=True):
            objective = self.objective_of(phase)
            if found and found[-1].objective == objective:
                found[-1] = found[-1]._replace(end=end)
            else:
                found.append(Stretch(objective, found[-1].end if found else 0, end))
        return tuple(found)

    def kept_steps(self) -> set[int]:
        """Steps whose checkpoints are never removed: the ends of stretches, and those the recipe names."""
        return {stretch.end for stretch in self.stretches()} | {
            round(share * self.train.steps) for share in self.train.keep_at
        }

    def stretch_at(self, step: int) -> Stretch:
        """That of step `step`, from 0 up to but not including all steps."""
        return next(stretch for stretch in self.stretches() if step < stretch.end)

    def packing_key(self) -> dict[str, Any]:
        """What the shards depend on, the texts themselves aside."""
        return {
            "seed": self.seed,
            "held_out": sorted(self.held_out),
            "tokenizer": asdict(self.tokenizer),
            "pack": asdict(self.pack),
            "sources": [asdict(source) for source in self.sources],
        }

    def training_key(self) -> dict[str, Any]:
        """What a checkpoint depends on: all but how often is looked and saved, so that those may change midway."""
        train = asdict(self.train)
        for key in (*_SAVING, "compile", "attention", "part_tokens"):
            del train[key]
        phases = [{**asdict(phase), "mixture": dict(phase.mixture)} for phase in self.phases]
        for phase in phases:
            del phase["objective"]
        made = {"shape": asdict(self.shape), "train": train, "phases": phases, "packing": self.packing_key()}
        # What came later is left out where it is as it was before, so that older checkpoints go on.
        objectives = [self.objective_of(phase) for phase in self.phases]
        if set(objectives) != {"causal"}:
            made["objectives"] = objectives
        if self.train.matrices == "muon":
            del train["matrices"]
        return made


def read_recipe(file: Path) -> Recipe:
    """Raises RecipeError if the file is no recipe: unreadable, unknown or missing keys, numbers that cannot be."""
    return recipe_from(read_raw(file))


def read_raw(file: Path) -> dict[str, Any]:
    """A recipe's TOML, laid over the recipe that it `extends`. Raises RecipeError."""
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
        base = raw.pop("extends", None)
        if base is None:
            return raw
        whole = tomllib.loads((file.parent / base).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(f"{file} cannot be read: {error}") from None
    if "extends" in whole:
        raise RecipeError(f"{base} extends another recipe itself")
    return dict(changed(whole, raw))


def without_words(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's TOML without what is for people alone: no result depends on that."""
    return {key: value for key, value in raw.items() if key not in ("origins", "card")}


def changed(base: Any, change: Any) -> Any:
    """`base` with what `change` names replaced: tables key by key; a table laid over a list changes each of it."""
    if isinstance(base, list) and isinstance(change, Mapping):
        return [changed(one, change) for one in base]
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        return {**base, **{key: changed(base.get(key), value) for key, value in change.items()}}
    return change


def recipe_from(raw: Mapping[str, Any]) -> Recipe:
    """A recipe from parsed TOML. Raises RecipeError."""
    parts = dict(raw)
    sources = tuple(_make(Source, {"name": name, **value}) for name, value in parts.pop("sources", {}).items())
    origins = tuple(_make(Origin, {"name": name, **value}) for name, value in parts.pop("origins", {}).items())
    recipe = _make(
        Recipe,
        {
            **parts,
            "tokenizer": _make(TokenizerRecipe, parts.get("tokenizer", {})),
            "shape": _make(Shape, parts.get("shape", {})),
            "pack": _make(PackRecipe, parts.get("pack", {})),
            "sources": sources,
            "origins": origins,
            "card": _make(CardRecipe, parts.get("card", {})),
            "phases": tuple(_make(Phase, phase) for phase in parts.get("phases", [])),
            "train": _make(TrainRecipe, parts.get("train", {})),
            "probes": tuple(_make(Probe, probe) for probe in parts.get("probes", [])),
        },
    )
    _check(recipe)
    return recipe


def _make(kind: type[T], values: Mapping[str, Any]) -> T:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise RecipeError(f"{kind.__name__}: there is no {', '.join(unknown)}; there is {', '.join(sorted(known))}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except TypeError as error:
        raise RecipeError(f"{kind.__name__}: {error}") from None


def _check(recipe: Recipe) -> None:
    """Raises RecipeError for the first thing that cannot be."""
    for part in (_claims, _claims_of_sources, _claims_of_phases):
        for holds, message in part(recipe):
            if not holds:
                raise RecipeError(message)
    objectives = [stretch.objective for stretch in recipe.stretches()]
    if len({FAMILIES[one] for one in objectives}) > 1:
        raise RecipeError(f"the objectives {', '.join(objectives)} are not of one kind of model")
    if len(set(objectives)) < len(objectives):
        raise RecipeError("the phases of one objective must follow each other")
    if any(stretch.end - stretch.begin <= recipe.train.warm_up for stretch in recipe.stretches()):
        raise RecipeError("the warm-up must be shorter than the training of each objective")


def _claims(recipe: Recipe) -> list[tuple[bool, str]]:
    shape, train = recipe.shape, recipe.train
    return [
        (300 <= recipe.tokenizer.vocabulary <= 65_536, "the vocabulary must be 300 to 65,536 entries: ids are uint16"),
        (shape.hidden % (2 * shape.heads) == 0, "heads must divide the hidden size into parts of even size"),
        (0 < train.warm_up < train.steps, "the warm-up must be shorter than the training"),
        (0 < train.decay <= 1 and 0 <= train.final <= 1, "`decay` and `final` are shares"),
        (train.precision in ("bf16", "fp32"), "the precision is bf16 or fp32"),
        (train.matrices in ("muon", "adamw"), "the optimizer of `matrices` is muon or adamw"),
        (train.part_tokens >= 0, "`part_tokens` must not be negative"),
        (train.attention in ("sdpa", "eager"), "the attention is sdpa or eager"),
        (all(0 < share <= 1 for share in train.keep_at), "`keep_at` are shares of the steps"),
        (0 <= train.average < 1, "`average` must be at least 0 and below 1"),
    ]


def _claims_of_sources(recipe: Recipe) -> list[tuple[bool, str]]:
    corpora = {source.name for source in recipe.sources if source.file}
    texts = corpora | {name for source in recipe.sources for name in source.sets}
    claims = [({one.name for one in recipe.origins} <= texts, "`origins` names texts that no source reads")]
    for source in recipe.sources:
        kinds = sum(map(bool, (source.file, source.sets, source.corpora)))
        claims += [
            (kinds == 1, f"source {source.name} must have one of file, sets and corpora"),
            (set(source.corpora) <= corpora, f"source {source.name} names a corpus that is no source"),
            (not set(source.sets) & set(recipe.held_out), f"source {source.name} uses a set that is held out"),
        ]
    return claims


def _claims_of_phases(recipe: Recipe) -> list[tuple[bool, str]]:
    names = {source.name for source in recipe.sources}
    untils = [phase.until for phase in recipe.phases]
    claims = [
        (bool(untils) and untils[-1] == 1.0, "the last phase must go until 1.0"),
        (untils == sorted(set(untils)), "the phases' `until` must rise"),
    ]
    for phase in recipe.phases:
        total, objective = sum(phase.mixture.values()), recipe.objective_of(phase)
        claims += [
            (set(phase.mixture) <= names, "a phase mixes a source that is not there"),
            (abs(total - 1) < 1e-6, f"the shares of the phase until {phase.until} sum to {total:g}, not to 1"),
            (8 <= phase.length <= recipe.shape.context, "a phase's length must be 8 at least and fit the context"),
            (phase.rows > 0, "a phase needs rows"),
            (objective in FAMILIES, f"there is no objective {objective}; there is {', '.join(FAMILIES)}"),
        ]
    return claims
