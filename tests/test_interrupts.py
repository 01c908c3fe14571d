import signal
import threading

import pytest

from ckptlin.interrupts import OneInterrupt, interrupts_held


@pytest.fixture(autouse=True)
def _handler():
    # A shell ignores SIGINT for what it runs in the background, and Python inherits that.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, former)


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_first_goes_through_and_the_second_waits_for_the_clean_up():
    cleared = []

    def interrupted():
        with OneInterrupt(), OneInterrupt():
            try:
                press()
            finally:
                press()
                cleared.append("all")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert cleared == ["all"]
    with pytest.raises(KeyboardInterrupt):
        press()


def test_after_an_error_the_first_waits_and_is_not_lost():
    cleared = []

    def fail():
        with OneInterrupt() as interrupts:
            try:
                raise ZeroDivisionError
            finally:
                interrupts.hold()
                press()
                cleared.append("all")

    with pytest.raises(KeyboardInterrupt) as raised:
        fail()
    assert cleared == ["all"]
    assert isinstance(raised.value.__context__, ZeroDivisionError)


def test_one_that_was_held_comes_when_the_block_is_left():
    done = []

    def interrupted():
        with interrupts_held():
            press()
            done.append("held")
        done.append("too far")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["held"]


def test_a_program_that_answers_without_an_exception_hears_all_of_them():
    heard = []
    former = signal.signal(signal.SIGINT, lambda signum, frame: heard.append(signum))
    try:
        with OneInterrupt():
            press()
            press()
    finally:
        signal.signal(signal.SIGINT, former)
    assert heard == [signal.SIGINT] * 2


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_the_system_answers_stays_so(disposition):
    former = signal.signal(signal.SIGINT, disposition)
    try:
        with interrupts_held():
            assert signal.getsignal(signal.SIGINT) == disposition
    finally:
        signal.signal(signal.SIGINT, former)


def test_another_thread_changes_nothing():
    found = []

    def look():
        with interrupts_held():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
