"""A sweep's members, learning together: who goes on, who stops early or falls out, and who has won.

Each member is a run as it would be alone, in the same forwards and backwards as the others (`cotraining.py`). One that
diverges or does not fit the context loses alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import ChorusError
from app.training.data import Example
from app.training.evaluate import Evaluator
from app.training.halving import SuccessiveHalving, ranked
from app.training.plan import Member, Plan
from app.training.preparing import Preparation
from app.training.reporter import Reporter
from app.training.runs import Diverged, Judgement, Run
from app.training.schedule import Schedule
from prompt_store import StoreError, StoreUnavailable


@dataclass(frozen=True)
class Contender:
    """A member that learns. `number` counts from 1; `plan` is that of a job of its own, its method settled."""

    number: int
    member: Member
    plan: Plan
    evaluator: Evaluator
    schedule: Schedule
    run: Run

    @property
    def name(self) -> str:
        return member_name(self.number, self.member)


@dataclass(frozen=True)
class Fallen:
    """A member that could not begin."""

    number: int
    member: Member
    error: ChorusError | StoreError


class Contest:
    """The members of one plan. `keep`: how many must see the end."""

    def __init__(
        self, plan: Plan, prepare: Preparation, dev: Sequence[Example], reporter: Reporter, *, keep: int
    ) -> None:
        self.contenders: list[Contender] = []
        self.fallen: list[Fallen] = []
        self._reporter = reporter
        self._halving = SuccessiveHalving(least=keep) if plan.halving else None
        for number, member in enumerate(plan.members, start=1):
            try:
                self.contenders.append(self._enter(number, member, plan.of(member), prepare, dev))
            except StoreUnavailable:
                raise
            except (ChorusError, StoreError) as error:
                self.fallen.append(Fallen(number, member, error))
                reporter.warned(
                    f"{member_name(number, member)} cannot begin: {error.message}",
                    logged=f"member {number} cannot begin: {error.code}",
                )
        if not self.contenders:
            raise self.fallen[0].error

    def _enter(
        self, number: int, member: Member, plan: Plan, prepare: Preparation, dev: Sequence[Example]
    ) -> Contender:
        encoder = prepare.encoder(plan)
        encoded = prepare.encode(encoder)
        schedule = prepare.schedule(plan, len(encoded))
        evaluator = prepare.evaluator(plan, encoder)
        settled, learner = prepare.patiently(lambda: prepare.begin(plan, schedule, encoder, encoded))
        voice = _Voice(self, number, member)
        run = Run(learner, encoded, encoder.verbalizer, schedule, judge=evaluator.quick_judge(dev), listener=voice)
        return Contender(number, member, plan.model_copy(update={"method": settled}), evaluator, schedule, run)

    @property
    def runs(self) -> list[Run]:
        return [one.run for one in self.contenders]

    @property
    def identity(self) -> str:
        """What a checkpoint of these runs belongs to, beside the plan."""
        return "".join(f"{one.number}{one.plan.method.model_dump_json()}" for one in self.contenders)

    def prune(self, runs: Sequence[Run]) -> None:
        """Behind every step: the worse half ends where it is due, and the job's story says so."""
        if self._halving is None:
            return
        before = {one.number for one in self.contenders if one.run.place.pruned}
        self._halving(runs)
        stopped = [one for one in self.contenders if one.run.place.pruned and one.number not in before]
        if stopped:
            left = sum(not run.place.done for run in runs)
            numbers = ", ".join(str(one.number) for one in stopped)
            self._reporter.settled(
                f"step {stopped[0].run.place.step}: {left} members go on; stopped: {numbers}",
                members=[one.number for one in stopped],
                learning=left,
            )

    def best(self, count: int) -> list[Contender]:
        """The best of those that have a prompt, `count` of them at most. Raises Diverged when none has."""
        of = {id(one.run): one for one in self.contenders}
        found = [of[id(run)] for run in ranked(self.runs) if run.error is None and run.place.best is not None]
        if not found:
            raise Diverged("every member of the sweep diverged; try smaller learning rates")
        return found[:count]

    def table(self, chosen: Sequence[Contender]) -> list[dict[str, Any]]:
        """Every member, by number: what it was, how it did and what became of it."""
        won = {one.number: place for place, one in enumerate(chosen)}
        rows = [self._row(one, won.get(one.number)) for one in self.contenders]
        rows += [_fallen_row(one) for one in self.fallen]
        return sorted(rows, key=lambda row: row["member"])

    def _row(self, one: Contender, place: int | None) -> dict[str, Any]:
        at = one.run.place
        state = "finished"
        more: dict[str, Any] = {}
        if one.run.error is not None:
            state, more = "diverged", {"error": one.run.error.message}
        elif place is not None:
            state = "won" if place == 0 else "chosen"
        elif at.pruned and self._halving is not None:
            state, more = "stopped", {"round": self._halving.round_of(one.run)}
        best = None if one.run.error is not None else at.best
        return {
            "member": one.number,
            "settings": one.member.settings,
            "state": state,
            **more,
            "score": None if best is None else best.score,
            "loss": None if best is None else best.loss,
            "best_step": None if best is None else at.best_step,
            "steps": at.step,
            "learning_rate": one.run.peak_rate,
        }

    @property
    def longest(self) -> int:
        """Tokens of the longest row of any member."""
        return max(one.run.longest for one in self.contenders)

    # what its members tell

    def stepped(self, step: int, loss: float) -> None:
        leader = ranked(self.runs)[0]
        number = next(one.number for one in self.contenders if one.run is leader)
        best = leader.place.best
        learning = sum(not run.place.done for run in self.runs)
        self._reporter.stepped(step, loss, best, leader=None if best is None else number, learning=learning)

    def evaluated(self, number: int, name: str, step: int, judgement: Judgement) -> None:
        leader = ranked(self.runs)[0]
        leads = leader.place.best is judgement
        self._reporter.evaluated(step, judgement, best=leads, member=number, name=name)

    def warned(self, message: str) -> None:
        self._reporter.warned(message)


class _Voice:
    """What one member says, with its name."""

    def __init__(self, contest: Contest, number: int, member: Member) -> None:
        self._contest = contest
        self._number = number
        self._name = member_name(number, member)

    def stepped(self, step: int, loss: float, best: Judgement | None) -> None:
        self._contest.stepped(step, loss)

    def evaluated(self, step: int, judgement: Judgement, *, best: bool) -> None:
        self._contest.evaluated(self._number, self._name, step, judgement)

    def warned(self, message: str) -> None:
        self._contest.warned(f"{self._name}: {message}")


def member_name(number: int, member: Member) -> str:
    """`member 3 (learning_rate 0.1, seed 2)`."""
    told = ", ".join(f"{name} {_short(value)}" for name, value in member.settings.items())
    return f"member {number} ({told})"


def _short(value: Any) -> str:
    text = str(value["type"] if isinstance(value, dict) else value)
    return text if len(text) <= 40 else text[:39] + "…"


def _fallen_row(one: Fallen) -> dict[str, Any]:
    return {
        "member": one.number,
        "settings": one.member.settings,
        "state": "failed",
        "error": one.error.message,
        "score": None,
        "loss": None,
        "best_step": None,
        "steps": 0,
        "learning_rate": None,
    }
