"""The endurance page keeps other parts and names what was missed; loads are mixed; slopes and verdicts add up."""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from app.cli.bench.outcomes import Outcome, Run
from benchmarks.endurance import __main__ as command
from benchmarks.endurance import outage, overload, restarts, soak
from benchmarks.endurance.__main__ import merged
from benchmarks.endurance.restarts import Rolled
from benchmarks.endurance.site import answered_s, codes_of, load_of, ms, told
from benchmarks.endurance.soak import Churned, Sample, warm_s
from benchmarks.endurance.trend import trend
from benchmarks.endurance.verdict import Found, Section, section


def test_section_takes_the_place_of_its_like_and_leaves_others(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text in ("## One\n\nfirst\n", "## Two\n\nsecond\n", "## One\n\nanew\n"):
        page.write_text(merged(page, text))
    text = page.read_text()
    assert text.startswith("# Endurance\n")
    assert "first" not in text
    assert text.index("second") < text.index("anew")


def test_command_writes_its_page_and_ends_with_1_naming_what_was_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    found = {"good": Section("## Good", ()), "bad": Section("## Bad", ("lost: 3, wanted 0",))}
    monkeypatch.setattr(command, "PARTS", {name: lambda scale, one=one: one for name, one in found.items()})
    monkeypatch.setattr(sys, "argv", ["endurance", "--part", "good", "--write", str(page)])
    command.main()
    monkeypatch.setattr(sys, "argv", ["endurance", "--write", str(page)])
    with pytest.raises(SystemExit, match=r"missed:\nbad: lost: 3, wanted 0") as ended:
        command.main()
    assert isinstance(ended.value.code, str)  # which the interpreter prints, and ends with 1
    assert {"## Good", "## Bad"} <= set(page.read_text().splitlines())


def test_section_names_each_goal_that_was_missed_and_no_other() -> None:
    found = [Found("a", "1"), Found("b", "2", "< 3", True), Found("c", "4", "< 3", False)]
    text, missed = section("Part", "How.", found)
    assert missed == ("c: 4, wanted < 3",)
    assert text.endswith("**Missed:** c: 4, wanted < 3.")
    assert section("Part", "How.", found[:2]).text.endswith("All goals are met.")


def test_line_of_least_squares_gives_growth_over_the_window() -> None:
    flat = trend([0, 1, 2, 3], [100, 100, 100, 100])
    assert (flat.growth, flat.share) == (0, 0)
    rising = trend([0, 10, 20], [100, 102, 104])
    assert (rising.first, rising.last) == pytest.approx((100, 104))
    assert rising.share == pytest.approx(4 / 102)
    noisy = trend([0, 1, 2, 3], [100, 104, 96, 100])
    assert noisy.growth == pytest.approx(-2.4)
    with pytest.raises(ValueError, match="2 samples"):
        trend([0, 1], [1, 2])


def test_answers_are_timed_and_failures_are_counted_by_code() -> None:
    given: list[tuple[float, str | None]] = [(0.4, None), (9.0, "overloaded"), (0.2, None), (9.0, "draining")]
    run = Run([Outcome(("mood",), 1.0, 1.0, 1.0 + seconds, codes=(code,)) for seconds, code in given])
    assert answered_s(run) == pytest.approx([0.2, 0.4])
    assert told(codes_of(run)) == "1 overloaded, 1 draining"
    assert (told(codes_of(Run())), ms(answered_s(run), 0.5), ms([], 0.5)) == ("0", "300 ms", "–")


def test_load_streams_the_share_that_was_asked_for() -> None:
    shots = list(islice(load_of("a", "b", streamed=0.5), 400))
    flowing = [shot for shot in shots if shot.stream]
    assert 150 < len(flowing) < 250
    assert all(json.loads(shot.body).get("stream", False) is shot.stream for shot in shots)
    assert not any(shot.stream for shot in islice(load_of("a"), 50))


def outcomes(*codes: str | None, took_s: float = 0.1, stream: bool = False) -> Run:
    return Run([Outcome(("a",), 0, 0, took_s, 0.05 if stream else None, codes=(code,)) for code in codes])


def rolled(*codes: str | None, exits: int = 0, **failed: int) -> Rolled:
    kinds = Counter({kind.replace("_", " "): count for kind, count in failed.items()})
    return Rolled(outcomes(*codes, stream=True), Counter({exits: 4}), Counter(), kinds)


CUT = rolled(None, "cut_off")


def test_restarts_that_lose_nothing_and_tell_what_they_cut_meet_their_goals() -> None:
    told_by_proxy = Rolled(CUT.run, CUT.exits, Counter(), Counter({"503 cut_off": 1}))
    assert restarts.verdict(rolled(None, None), told_by_proxy).missed == ()
    assert restarts.verdict(rolled(None, None), rolled("drain")).missed == ()


@pytest.mark.parametrize(
    ("whole", "short", "reason"),
    [
        (rolled(None, "connection_lost"), CUT, "failed, as the clients saw it: 1 connection_lost"),
        (rolled(None, "cut_off"), CUT, "failed, as the clients saw it: 1 cut_off"),
        (rolled(None, hung_up=2), CUT, "failed, as the proxy saw it: 2 hung up"),
        (rolled(None, exits=1), CUT, "restarts: 4 with status 1"),
        (rolled(None), rolled(None, "cut_off", exits=-9), "4 restarts that leave 0 s to what runs: 4 with status -9"),
        (rolled(None, "drain"), CUT, "failed, as the clients saw it: 1 drain"),
        (rolled(None), rolled(None), "cut off, and told so: 0 of 1"),
        (rolled(None), rolled(None, "cut_off", "stream_cut"), "cut off without a word: 1 stream_cut"),
        (rolled(None), rolled(None, "cut_off", hung_up=1), "cut off without a word: 1 hung up"),
    ],
)
def test_restarts_name_what_was_lost(whole: Rolled, short: Rolled, reason: str) -> None:
    (missed,) = restarts.verdict(whole, short).missed
    assert missed.startswith(reason)


def test_restarts_without_a_stream_among_the_answers_prove_nothing_of_streams() -> None:
    whole = Rolled(outcomes(None, None), Counter({0: 4}), Counter(), Counter())
    assert [reason.partition(":")[0] for reason in restarts.verdict(whole, CUT).missed] == [
        "answered, streams among them"
    ]


def samples(*, resident: float = 0, descriptors: float = 0, tasks: float = 0, threads: float = 0) -> list[Sample]:
    """Ten minutes, a sample every 5 s, each quantity growing by so much an hour; until 100 s all of it leaps."""
    found = []
    for at in range(0, 600, 5):
        hours, leap = at / 3600, 50 if at < 100 else 0
        held = (int(100 + hours * growth) - leap for growth in (descriptors, tasks, threads))
        found.append(Sample(at, 400 + hours * resident - leap, *held))
    return found


def churned(found: list[Sample], *codes: str | None, after: int = 0, left: int = 3) -> Churned:
    ways = Counter(dict.fromkeys(("in mid-stream", "before the answer", "in mid-request"), left))
    first = found[0]
    return Churned(outcomes(None, *codes), found, 9, ways, first, first._replace(tasks=first.tasks + after))


def test_soak_whose_warm_up_leaps_and_whose_rest_is_flat_meets_its_goals() -> None:
    assert warm_s(1800) == 300
    assert warm_s(600) == 100
    assert soak.verdict(churned(samples(), "task_not_found", "overloaded"), 600).missed == ()


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (churned(samples(resident=100)), "its slope: +3"),
        (churned(samples(descriptors=100)), "descriptors: "),
        (churned(samples(tasks=100)), "asyncio tasks: "),
        (churned(samples(threads=100)), "threads: "),
        (churned(samples(), after=1), "asyncio tasks at rest, before → after: 50 → 51"),
        (churned(samples(), "internal_error"), "other errors: 1 internal_error"),
        (churned(samples(), left=0), "clients that left: "),
    ],
)
def test_soak_names_what_grew_or_failed(found: Churned, reason: str) -> None:
    (missed,) = soak.verdict(found, 600).missed
    assert missed.startswith(reason)


def test_outage_is_missed_by_one_failure_or_no_answer_at_all() -> None:
    good, bad = outcomes(None), outcomes(None, "store_unavailable")
    given = {"started_s": 5.0, "seconds": 60.0}
    assert outage.verdict(good, good, good, good, **given).missed == ()
    assert [reason.partition(":")[0] for reason in outage.verdict(good, bad, Run(), good, **given).missed] == [
        "while it hangs",
        "after",
    ]
    assert len(outage.verdict(good, good, good, good, started_s=61.0, seconds=60.0).missed) == 1


def flood(answered: int, refused: int, *, refused_s: float = 0.01) -> Run:
    """In one second."""
    good, bad = outcomes(*[None] * answered, took_s=1), outcomes(*["overloaded"] * refused, took_s=refused_s)
    return Run(good.outcomes + bad.outcomes)


def test_overload_holds_its_goals_and_names_each_that_it_misses() -> None:
    def missed(run: Run, after: float = 100, recovered_s: float = 1) -> list[str]:
        floods = [overload.Flood(10, run, 100, after, recovered_s)] * 3
        return [reason.partition(":")[0] for reason in overload.verdict(floods, 1).missed]

    assert missed(flood(10, 90)) == []
    assert missed(flood(8, 92)) == ["goodput of the peak, median"]
    assert missed(flood(10, 70)) == ["sent under overload"]
    assert missed(flood(10, 90, refused_s=0.2)) == ["refused with 429, p99, median"]
    assert missed(flood(100, 0)) == ["refused with 429, p99, median"]
    assert missed(Run(flood(10, 90).outcomes + outcomes("internal_error").outcomes)) == ["other errors"]
    assert missed(flood(10, 90), after=106) == ["memory of the API"]
    assert missed(flood(10, 90), recovered_s=6) == ["recovery, the longest"]


def test_overload_takes_the_median_of_rates_and_the_worst_of_the_rest() -> None:
    good = overload.Flood(10, flood(10, 90), 100, 100, 1)
    slow = overload.Flood(10, flood(8, 92, refused_s=0.2), 100, 100, 1)
    assert overload.verdict([good, slow, good], 1).missed == ()
    assert len(overload.verdict([good, slow, slow], 1).missed) == 2
    grown = overload.Flood(10, Run(good.run.outcomes + outcomes("internal_error").outcomes), 100, 106, 6)
    assert len(overload.verdict([good, good, grown], 1).missed) == 3
