"""The line: who is taken together, who waits, and for how long."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import LabelTokens
from tuyi.serve.jobs import Job, Row, Script
from tuyi.serve.line import Line
from tuyi.serve.refusals import RefusalError


def job(tokens: int, *, written: bool = False) -> Job:
    encoded = Encoded("", "", np.zeros(tokens, np.int32), np.zeros(tokens, bool), np.zeros((3, tokens), np.int32))
    row = Row(encoded, "t", script=Script((), 1)) if written else Row(encoded, "t", labels=LabelTokens(("a",), ((1,),)))
    mail: Any = None
    one = Job(lambda job: row, mail, row)
    one.read_at = time.monotonic()
    return one


def line(*jobs: Job, pack: int = 10, wait: float = 0.2, limit: int = 100, ahead: int = 1000) -> Line:
    made = Line(pack, wait, limit, ahead)
    for one in jobs:
        made.enter()
        made.add(one)
    return made


def test_those_to_be_written_are_bounded_by_their_tokens():
    one = line(job(30, written=True), job(10, written=True), ahead=10)
    one.enter()
    with pytest.raises(RefusalError, match="answers to 40 tokens are waiting") as refused:
        one.add(job(1, written=True))
    assert (refused.value.status, len(one)) == (429, 2)
    assert [len(job.asked.encoded) for job in one.written(100)] == [30, 10]
    one.enter()
    one.add(job(500, written=True))
    assert len(one) == 1, "one alone may be as long as it likes"


def test_nobody_waits_for_what_is_read_slowly():
    one = line(job(4), wait=30.0)
    one.enter()
    one.wait_less()
    began = time.monotonic()
    taken = one.take()
    assert taken is not None
    assert (len(taken), len(one)) == (1, 1)
    assert time.monotonic() - began < 10
    one.close()
    one.add(None, slowly=True)
    assert one.take() is None


def test_oldest_first_as_many_as_fit():
    first, second, third, large = job(4), job(6), job(1), job(50)
    one = line(first, second, third, large)
    assert one.take() == [first, second]
    assert one.take() == [third]
    assert one.take() == [large], "a row larger than a pack stands alone"
    assert one.take(wait=0) == []


def test_nobody_waits_where_nothing_is_read():
    began = time.monotonic()
    assert len(line(job(1), wait=30).take() or []) == 1
    assert time.monotonic() - began < 5


def test_waits_for_what_is_being_read():
    first, second = job(1), job(1)
    one = line(first, wait=5)
    one.enter()
    threading.Timer(0.1, one.add, [second]).start()
    assert one.take() == [first, second]


def test_waits_no_longer_than_it_may():
    one = line(job(1), wait=0.1)
    one.enter()
    assert len(one.take() or []) == 1
    assert len(one) == 1


def test_takes_nothing_below_what_is_worth_it():
    one = line(job(3))
    assert one.take(least=4, wait=0.01) == []
    assert len(one.take(least=3, wait=0.01) or []) == 1


def test_who_has_gone_is_not_taken():
    gone, there = job(1), job(1)
    one = line(gone, there)
    gone.is_gone = True
    assert one.take() == [there]
    assert len(one) == 0


def test_what_is_written_stands_apart():
    scored, written, other = job(1), job(2, written=True), job(2, written=True)
    one = line(written, other)
    assert one.take() == [], "the model's thread has something else to do"
    taken = one.written(100)
    assert taken == [written, other]
    one.back(taken[1:])
    assert one.written(1) == [other]
    one.enter()
    one.add(scored)
    assert one.take() == [scored]


def test_a_full_line_refuses():
    one = line(job(1), limit=2)
    one.enter()
    with pytest.raises(RefusalError, match="2 requests are waiting already"):
        one.enter()
    one.add(None)
    one.enter()


def test_a_closed_line_ends_once_it_is_empty():
    one = line(job(1))
    one.enter()
    one.close()
    with pytest.raises(RefusalError, match="stopping"):
        one.enter()
    assert len(one.take() or []) == 1
    threading.Timer(0.1, one.add, [job(1)]).start()
    assert len(one.take() or []) == 1
    assert one.take() is None


def test_readers_pause_when_enough_is_read():
    one = line(job(9), job(9), pack=10, ahead=15)
    paused = threading.Thread(target=one.pause)
    paused.start()
    paused.join(0.1)
    assert paused.is_alive()
    one.take()
    paused.join(5)
    assert not paused.is_alive()
