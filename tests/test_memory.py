"""Sizes, budgets and plans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin import memory
from ckptlin.errors import InputError, MemoryBudgetError
from ckptlin.memory import FIXED_BYTES, MemoryPlan, format_bytes, parse_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("1000000", 10**6),
        ("17B", 17),
        ("1k", 1000),
        ("1KiB", 1024),
        ("512MB", 512 * 10**6),
        ("512 mib", 512 << 20),
        ("1.5GiB", 3 << 29),
        (".5G", 5 * 10**8),
        (" 2 T ", 2 * 10**12),
        ("3TiB", 3 << 40),
    ],
)
def test_a_size_is_read_in_any_of_its_spellings(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "B", "MB", "1X", "1 2MB", "-1MB", "1e9", "1MBB", "nan", "inf", "1.MB", "½GB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="is not a size; write for example 512MB or 2GiB"):
        parse_bytes(text)


@given(st.integers(0, 1 << 60))
def test_a_size_for_people_reads_back_to_what_it_says(num_bytes):
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.06)


def test_a_process_knows_its_memory():
    assert 10 * MIB < memory.current_rss() < 1 << 40
    assert memory.available_memory() > 10 * MIB
    assert 0 < memory.default_budget() <= 1 << 30


@pytest.mark.parametrize(("available", "budget"), [(None, 1 << 30), (600 * MIB, 300 * MIB), (1 << 40, 1 << 30)])
def test_the_default_budget_is_a_gibibyte_or_half_of_what_there_is(monkeypatch, available, budget):
    monkeypatch.setattr(memory, "available_memory", lambda: available)
    assert memory.default_budget() == budget


@given(
    budget=st.integers(0, 1 << 36),
    worker_bytes=st.integers(0, 1 << 32),
    num_workers=st.integers(1, 256),
    extra_bytes=st.integers(0, 1 << 32),
)
def test_a_plan_keeps_within_its_budget_or_is_refused(budget, worker_bytes, num_workers, extra_bytes):
    least = FIXED_BYTES + extra_bytes + max(worker_bytes, 1)
    if least > budget:
        with pytest.raises(MemoryBudgetError):
            MemoryPlan.within(budget, "fit", worker_bytes, num_workers, extra_bytes=extra_bytes)
        return
    plan = MemoryPlan.within(budget, "fit", worker_bytes, num_workers, extra_bytes=extra_bytes)
    assert 1 <= plan.num_workers <= num_workers
    assert plan.peak_bytes == FIXED_BYTES + extra_bytes + plan.num_workers * worker_bytes
    assert plan.peak_bytes <= budget
    if plan.num_workers < num_workers:
        assert plan.peak_bytes + worker_bytes > budget


@given(
    budget=st.integers(0, 1 << 30),
    worker_bytes=st.integers(1 << 28, 1 << 34),
    extra_bytes=st.integers(1 << 29, 1 << 31),
)
def test_the_figure_that_a_refusal_names_is_enough(budget, worker_bytes, extra_bytes):
    with pytest.raises(MemoryBudgetError, match=r"fit needs at least .* more than the .* allowed") as caught:
        MemoryPlan.within(budget, "fit", worker_bytes, 2, extra_bytes=extra_bytes)
    figure = str(caught.value).split("give --memory ")[1].split()[0]
    plan = MemoryPlan.within(parse_bytes(figure), "fit", worker_bytes, 2, extra_bytes=extra_bytes)
    assert plan.num_workers == 1
    with pytest.raises(MemoryBudgetError):
        MemoryPlan.within(parse_bytes(figure) - 10**6 - 1, "fit", worker_bytes, 2, extra_bytes=extra_bytes)
