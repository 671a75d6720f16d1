"""How long training took: measured where the log says so, reckoned from its rates where it does not, and told apart.

A line of the log tells the tokens and seconds that it covers. Lines of before this was so have a rate alone, and are
taken to cover all tokens since the line before. Tokens that no line covers, because a process was killed between its
last line and its last checkpoint, are reckoned at the mean rate of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Logged:
    """A line of the log. `tokens` and `seconds` are those it covers, `end` the tokens of all steps up to it; `losses`
    and `answers` in nats, by source."""

    step: int
    end: int
    tokens: int
    seconds: float
    measured: bool
    losses: Mapping[str, float]
    answers: Mapping[str, float]
    device: str = ""
    threads: int = 0


@dataclass(frozen=True)
class TimeTaken:
    """Seconds of training, of which `measured` are by a clock; `tokens` in all, of which `covered` some line covers."""

    seconds: float
    measured: float
    tokens: int
    covered: int

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def read_lines(raw: Sequence[Mapping[str, Any]], tokens_until: Callable[[int], int]) -> list[Logged]:
    """Lines of `train.jsonl`, of any age. `tokens_until` tells the tokens up to a step."""
    found: list[Logged] = []
    before = 0
    for line in raw:
        end = tokens_until(line["step"])
        tokens = int(line.get("tokens", end - before))
        found.append(
            Logged(
                step=line["step"],
                end=end,
                tokens=tokens,
                seconds=float(line["seconds"]) if "seconds" in line else tokens / line["tokens_per_second"],
                measured="seconds" in line,
                losses={name: one["loss"] for name, one in line["sources"].items()},
                answers={
                    name: one["answer_loss"] for name, one in line["sources"].items() if one["answer_loss"] is not None
                },
                device=line.get("device", ""),
                threads=line.get("threads", 0),
            )
        )
        before = end
    return found


def time_taken(lines: Sequence[Logged], tokens: int) -> TimeTaken:
    """Of `tokens` in all. There must be a line."""
    covered = min(tokens, sum(line.tokens for line in lines))
    logged = sum(line.seconds for line in lines)
    measured = sum(line.seconds for line in lines if line.measured)
    return TimeTaken(logged * tokens / covered, measured, tokens, covered)
