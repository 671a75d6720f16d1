"""Promises of the restart rules."""

import signal

from app.supervisor.backoff import KILLED_DELAY_S, SETTLED_S, Backoff


def test_next_delay_when_it_fails_at_once_three_times_gives_up() -> None:
    backoff = Backoff()
    delays = [backoff.next_delay(status=1, lived_s=0.1, was_ready=False) for _ in range(3)]
    assert delays[0] is not None
    assert delays[1] is not None
    assert delays[1] > delays[0]
    assert delays[2] is None


def test_next_delay_when_killed_from_outside_never_gives_up() -> None:
    backoff = Backoff()
    for _ in range(20):
        assert backoff.next_delay(status=-signal.SIGKILL, lived_s=0.1, was_ready=True) == KILLED_DELAY_S


def test_next_delay_when_killed_before_it_was_ready_counts_as_failure() -> None:
    backoff = Backoff()
    delays = [backoff.next_delay(status=-signal.SIGKILL, lived_s=0.1, was_ready=False) for _ in range(3)]
    assert delays[2] is None


def test_next_delay_when_it_had_settled_starts_counting_anew() -> None:
    backoff = Backoff()
    for _ in range(10):
        assert backoff.next_delay(status=1, lived_s=SETTLED_S + 1, was_ready=True) is not None


def test_next_delay_when_a_crash_signal_comes_at_once_gives_up() -> None:
    backoff = Backoff(failures=2)
    assert backoff.next_delay(status=-signal.SIGSEGV, lived_s=0.1, was_ready=True) is None


def test_next_delay_when_the_settings_are_wrong_gives_up_at_once() -> None:
    assert Backoff().next_delay(status=2, lived_s=1.0, was_ready=False) is None
