"""Counting in the database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

from catalog.totals import metrics, repository
from catalog.totals.metrics import JOBS_ENDED, PHASE_SECONDS, Counter
from catalog.totals.repository import Totals, count, observe


def totals(database):
    with database.read() as session:
        return Totals(session)


def test_numbers_add_up_over_transactions(database):
    for by in (1, 2.5):
        with database.write() as session:
            count(session, JOBS_ENDED, "compress", "cpu", "failed", by=by)
            count(session, JOBS_ENDED, "compress", "cpu", "failed")
            count(session, JOBS_ENDED, 'a"b', "\u00fc", "x,y")
    assert totals(database).of_counter(JOBS_ENDED) == {
        ("compress", "cpu", "failed"): 5.5,
        ('a"b', "\u00fc", "x,y"): 2,
    }


def test_what_is_rolled_back_was_not_counted(database):
    with suppress(RuntimeError), database.write() as session:
        count(session, JOBS_ENDED, "compress", "cpu", "expired")
        raise RuntimeError
    with database.write() as session:
        count(session, JOBS_ENDED, "compress", "cpu", "failed")
        with session.begin_nested():
            count(session, JOBS_ENDED, "compress", "cpu", "failed")
    assert totals(database).of_counter(JOBS_ENDED) == {("compress", "cpu", "failed"): 2}


def test_a_histogram_by_hand(database):
    for seconds in (0.05, 0.1, 0.2, 5, 5, 99_999, -3):
        with database.write() as session:
            observe(session, PHASE_SECONDS, "compress", "pruning", seconds=seconds)
    ((labels, (buckets, total)),) = totals(database).of_histogram(PHASE_SECONDS).items()
    assert labels == ("compress", "pruning")
    assert total == pytest.approx(0.05 + 0.1 + 0.2 + 10 + 99_999)
    below = dict(buckets)
    assert (below["0.1"], below["0.3"], below["3.0"], below["10.0"]) == (3, 4, 4, 6)
    assert (below["43200.0"], below["+Inf"]) == (6, 7)


def test_many_at_once_lose_nothing_and_block_nobody(database):
    def add(number):
        # Each in an order of its own: what is locked first must not depend on it.
        states = ["failed", "succeeded", "cancelled", "expired"]
        for state in states[number % 4 :] + states[: number % 4]:
            with database.write() as session:
                for other in (state, *states):
                    count(session, JOBS_ENDED, "compress", "cpu", other)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(8)))
    assert set(totals(database).of_counter(JOBS_ENDED).values()) == {8 * 5}


def test_series_of_a_label_that_strangers_choose_are_bounded(database, monkeypatch):
    bounded = Counter("levity_test_total", "A test.", ("queue", "code"), at_most=3)
    monkeypatch.setattr(repository, "COUNTERS", (*metrics.COUNTERS, bounded))
    for code in ("a", "b", "c", "d", "e", "a", "d"):
        with database.write() as session:
            count(session, bounded, "cpu", code)
    assert totals(database).of_counter(bounded) == {
        ("cpu", "a"): 2,
        ("cpu", "b"): 1,
        ("cpu", "c"): 1,
        ("cpu", "other"): 3,
    }
    with database.write() as session:
        for code in "fgh":
            count(session, replace(bounded), "io", code)
    assert totals(database).of_counter(bounded)["io", "other"] == 3


def test_names_are_those_of_prometheus():
    for metric in (*metrics.COUNTERS, *metrics.HISTOGRAMS):
        assert metric.name.startswith("levity_")
        assert metric.name.endswith("_total" if isinstance(metric, Counter) else "_seconds")
        assert len(metric.name) <= 64
        assert metric.help.endswith(".")
