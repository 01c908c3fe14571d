import signal
import threading
import time

import pytest

from ckptlin.execution import Threads


def test_every_item_is_worked_on_over_several_graphs_about_in_order():
    started, results = [], {}
    Threads(3).run(lambda item: (started.append(item), 2 * item)[1], range(1200), results.__setitem__)
    assert results == {i: 2 * i for i in range(1200)}
    assert max(abs(item - place) for place, item in enumerate(started)) < 8
    Threads(2).run(lambda item: item, [], results.__setitem__)


def test_items_are_announced_before_they_are_worked_on():
    events = []
    Threads(2).run(events.append, range(20), ahead=lambda item: events.append(-item))
    assert {-e for e in events if e < 0} == set(range(4, 20))
    assert all(events.index(-item) < events.index(item) for item in range(4, 20))


def test_the_first_error_ends_the_run_after_the_tasks_in_flight():
    started, ended = [], []
    lock = threading.Lock()

    def work(item):
        with lock:
            started.append(item)
        if item == 3:
            raise ValueError("three")
        with lock:
            ended.append(item)

    with pytest.raises(ValueError, match="three"):
        Threads(2).run(work, range(2000))
    assert sorted([*ended, 3]) == sorted(started)
    assert len(started) < 600


def test_a_second_interrupt_waits_for_the_tasks_in_flight():
    """What is written to would otherwise be cleared away under them."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    started, ended = [], []

    def work(item):
        started.append(item)
        if item == 3:
            for _ in range(20):
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.01)
        ended.append(item)

    try:
        with pytest.raises(KeyboardInterrupt):
            Threads(2).run(work, range(2000))
        assert sorted(ended) == sorted(started)
        assert 3 in ended
        assert len(started) < 600
    finally:
        signal.signal(signal.SIGINT, former)
