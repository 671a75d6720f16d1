"""Two lines that are compared within a few per cent: in turns so close that a disturbed minute hits both, and with a
rule for rounds that were disturbed all the same."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

REPEATS = 2
Pair = tuple[float, float]


@dataclass
class Pairs:
    """`kept`: the two rates of every round that counts. `replaced`: (round, its rates) of each disturbed one that was
    repeated, in the order in which that happened."""

    kept: list[Pair]
    replaced: list[tuple[int, Pair]] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """The second rate ÷ the first, round by round."""
        return [second / first for first, second in self.kept]

    def side(self, i: int) -> list[float]:
        return [pair[i] for pair in self.kept]

    def told(self, first: str, second: str) -> list[str]:
        """A line for each disturbed round, whether it was repeated or, after so many repetitions, still counts."""
        begun = [(at, pair, "repeated") for at, pair in self.replaced]
        left = [(at, self.kept[at], "counted all the same") for at in disturbed(self.kept)]
        return [
            f"round {at + 1} was disturbed ({first} {a:.3g}/s, {second} {b:.3g}/s) and {became}"
            for at, (a, b), became in (*begun, *left)
        ]


def disturbed(rounds: Sequence[Pair]) -> list[int]:
    """The rounds in which either rate is below half of its own median over all rounds."""
    if not rounds:
        return []
    middles = [statistics.median(side) for side in zip(*rounds, strict=True)]
    return [at for at, pair in enumerate(rounds) if any(rate < m / 2 for rate, m in zip(pair, middles, strict=True))]


def in_pairs(run: Callable[[], Pair], rounds: int) -> Pairs:
    """`rounds` runs; disturbed ones are run again, each at most twice. Nothing is dropped: what was replaced is kept
    aside, and a round that stayed disturbed counts."""
    found = Pairs([run() for _ in range(rounds)])
    for _ in range(REPEATS):
        for at in disturbed(found.kept):
            found.replaced.append((at, found.kept[at]))
            found.kept[at] = run()
    return found


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """`0.97 (0.95–0.99)`: median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"
