"""The background thread: order, bound, end and errors."""

import threading
import weakref

import pytest

from stem_torchrec.data.prefetch import prefetched
from stem_torchrec.errors import UserError


def threads():
    return [thread for thread in threading.enumerate() if "prefetch" in thread.name]


def counting(stop, events=None):
    try:
        for number in range(stop):
            if events is not None:
                events.append(number)
            yield number
    finally:
        if events is not None:
            events.append("closed")


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order_and_the_thread_ends(depth):
    events = []
    assert list(prefetched(counting(50, events), depth)) == list(range(50))
    assert events[-1] == "closed"
    assert not threads()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_closing_early_ends_the_thread_and_closes_the_source(depth):
    events = []
    items = prefetched(counting(10**9, events), depth)
    assert next(items) == 0
    assert bool(threads()) == bool(depth)
    items.close()
    assert not threads()
    assert events[-1] == "closed"
    assert len(events) <= depth + 3


def test_no_more_than_depth_items_are_prepared_ahead():
    ahead = threading.Event()
    made = []

    def source():
        for number in range(100):
            made.append(number)
            if number == 3:
                ahead.set()
            yield number

    items = prefetched(source(), 3)
    next(items)
    assert ahead.wait(10)
    assert not threading.Event().wait(0.05)
    assert len(made) == 4
    items.close()


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_reaches_the_consumer_after_the_items_before_it(depth):
    def source():
        yield 1
        raise UserError("column 'a'")

    items = prefetched(source(), depth)
    assert next(items) == 1
    with pytest.raises(UserError, match="column 'a'"):
        next(items)
    assert not threads()


def test_dropping_the_iterator_ends_the_thread():
    items = prefetched(counting(10**9), 2)
    next(items)
    alive = weakref.ref(items)
    del items
    assert alive() is None
    assert not threads()
