import threading

import pytest

from ckptlin.execution import run_tasks


def test_results_come_in_the_order_of_items_over_several_graphs():
    assert run_tasks(lambda item: 2 * item, range(1200), num_workers=3) == [2 * i for i in range(1200)]
    assert run_tasks(lambda item: item, [], num_workers=2) == []


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
        run_tasks(work, range(2000), num_workers=2)
    assert sorted([*ended, 3]) == sorted(started)
    assert len(started) < 600
