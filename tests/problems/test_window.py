from datetime import date, datetime

import pytest

from ckptlin.errors import InputError
from ckptlin.problems import Problem
from ckptlin.problems.window import Window, as_window


def published(day, field="contest_date") -> Problem:
    return Problem("?", id="7", extra={field: day})


@pytest.mark.parametrize(
    ("day", "held"),
    [
        ("2024-07-31T23:59:59", False),
        ("2024-08-01", True),
        ("2025-01-31T23:00:00", True),
        ("2025-02-01", False),
        (date(2024, 8, 1), True),
        (datetime(2025, 1, 31, 12), True),
    ],
)
def test_both_ends_are_included(day, held):
    window = as_window("2024-08-01:2025-01-31")
    assert window.holds(published(day)) is held
    assert window.holds(published(day, "date")) is held


def test_it_is_given_as_text_or_as_two_days_and_told_as_text():
    window = Window(date(2024, 8, 1), date(2025, 1, 31))
    assert as_window("2024-08-01:2025-01-31") == as_window(("2024-08-01", "2025-01-31")) == window
    assert as_window(window) is window
    assert as_window(None) is None
    assert (str(window), window.to_list()) == ("2024-08-01:2025-01-31", ["2024-08-01", "2025-01-31"])


@pytest.mark.parametrize(
    "text", ["2024-08-01", "2024-08-01:", "a:b", "2024-08-01:2024-13-01", "", ("2024-08-01",)]
)
def test_what_is_no_window_is_refused(text):
    with pytest.raises(InputError, match=r"is none; give its first and its last day, as in 2024-08-01"):
        as_window(text)


def test_one_that_ends_before_it_begins_is_refused():
    with pytest.raises(InputError, match="2025-01-31:2024-08-01 ends before it begins"):
        as_window("2025-01-31:2024-08-01")


def test_a_problem_without_a_date_or_with_a_malformed_one_is_an_error():
    window = as_window("2024-08-01:2025-01-31")
    with pytest.raises(InputError, match=r"problem 7 has no date; give each the field contest_date or date"):
        window.holds(Problem("?", id="7"))
    for value in ("August", 20240801, ["2024-08-01"]):
        with pytest.raises(InputError, match=r"problem 7 has .* as contest_date; expected a date such as"):
            window.holds(published(value))
