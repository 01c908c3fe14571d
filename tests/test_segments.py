"""Jumps, the segments between them, and the trainer's record that they are read from."""

import json
import re

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.checkpoints.locations import location_of
from ckptlin.errors import CheckpointError, InputError
from ckptlin.segments import (
    TRAIN_RECORD_NAME,
    Jump,
    jumps_among,
    merge_jumps,
    read_jumps,
    segments_of,
    segments_to_dict,
    warn_of_jumps,
)

FIRST, SECOND = Jump(20, 40, "two-point"), Jump(60, 80, "relex:rank=1")
STEPS = (0, 10, 20, 40, 50, 60, 80, 90)

steps = st.sets(st.integers(0, 30), min_size=1).map(sorted)
jumps = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8))).map(
    lambda drawn: [Jump(first, first + length, "ols") for first, length in drawn]
)


@given(steps, jumps)
def test_steps_lie_in_one_segment_just_if_all_between_them_was_trained(steps, jumps):
    # Step by step, and not by comparing ends: unit k leads from step k to step k + 1.
    skipped = {unit for jump in jumps for unit in range(jump.from_step, jump.to_step)}
    parts = segments_of(steps, jumps)
    assert [step for part in parts for step in part] == steps
    segment = {step: number for number, part in enumerate(parts) for step in part}
    for a in steps:
        for b in steps:
            if a < b:
                assert (segment[a] == segment[b]) == skipped.isdisjoint(range(a, b))


@given(steps, jumps)
def test_the_jumps_among_steps_are_those_that_divide_them(steps, jumps):
    inside = jumps_among(steps, jumps)
    assert segments_of(steps, inside) == segments_of(steps, jumps)
    for jump in jumps:
        assert (jump in inside) == (len(segments_of(steps, [jump])) > 1)
    found = segments_to_dict(steps, jumps)
    assert found["crosses_jump"] == (len(found["segments"]) > 1)


def test_no_steps_have_no_segments():
    assert segments_of((), [FIRST]) == ()
    assert jumps_among((), [FIRST]) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((20, 20, "ols"), "must lead to a later step, not from 20 to 20; where nothing was extrapolated"),
        ((20, 10, "ols"), "must lead to a later step"),
        ((-1, 10, "ols"), "`from` of a jump must be a step, a whole number from 0 on, not -1"),
        ((0, 10.0, "ols"), "`to` of a jump must be a step, a whole number from 0 on, not 10.0"),
        ((False, 10, "ols"), "`from` of a jump must be a step"),
        ((0, 10, ""), "`method` of a jump must be the name of a method, not ''"),
        ((0, 10, None), "`method` of a jump must be the name"),
    ],
)
def test_what_is_no_jump_is_refused_when_it_is_made(arguments, message):
    with pytest.raises(InputError, match=message):
        Jump(*arguments)


def test_a_jump_survives_json_and_what_stands_beside_it():
    data = {**SECOND.to_dict(), "coefficients": [1.0]}
    assert Jump.from_dict(json.loads(json.dumps(data))) == SECOND


def test_of_what_several_records_say_the_last_counts():
    newer = Jump(20, 40, "ols")
    assert merge_jumps([SECOND, FIRST], [newer]) == (newer, SECOND)


# The record


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    """An empty run's directory, and what writes a file into it."""
    if request.param == "local":
        return tmp_path, lambda data: (tmp_path / TRAIN_RECORD_NAME).write_bytes(data)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe_file("/runs/a/checkpoint-0/config.json", b"{}")
    return (
        location_of("memory://runs/a"),
        lambda data: memory.pipe_file(f"/runs/a/{TRAIN_RECORD_NAME}", data),
    )


def test_a_run_without_a_record_or_without_jumps_in_it_has_none(run):
    directory, write = run
    assert read_jumps(directory) == ()
    write(b'{"steps": 100}')
    assert read_jumps(directory) == ()


def test_jumps_are_read_in_order_with_what_else_the_record_says(run):
    directory, write = run
    record = {
        "config": {"method": "grpo"},
        "jumps": [{**SECOND.to_dict(), "skill": None}, FIRST.to_dict()],
        "jumps_undone": [{"from": 90, "to": 110, "method": "ols"}],
    }
    write(json.dumps(record).encode())
    assert read_jumps(directory) == (FIRST, SECOND)


ONE = '{"from": 20, "to": 40, "method": "ols"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"jumps": [', "is not valid JSON (Expecting value"),
        (b"\xff\xfe", "is not valid JSON ("),
        (b"[" * 100_000, "is not valid JSON ("),
        (b"[]", "holds a JSON list where an object is expected"),
        (b'{"jumps": null}', "is a JSON NoneType where a list is expected"),
        (b'{"jumps": {"from": 20}}', "is a JSON dict where a list is expected"),
        (b'{"jumps": [20]}', "entry 1 of `jumps` in {path} cannot be read: a jump must be an object"),
        (b'{"jumps": [{"from": 20, "to": 40}]}', "cannot be read: a jump lacks `method`"),
        (b'{"jumps": [{"from": "20", "to": 40, "method": "ols"}]}', "a whole number from 0 on, not '20'"),
        (f'{{"jumps": [{ONE}, {{"from": 40, "to": 40, "method": "ols"}}]}}'.encode(), "entry 2 of `jumps` in"),
        (
            f'{{"jumps": [{ONE}, {{"from": 30, "to": 50, "method": "ols"}}]}}'.encode(),
            "has one from step 20 to 40 (ols) and one from step 30 to 50 (ols), but no step is trained inside",
        ),
        (f'{{"jumps": [{ONE}, {ONE}]}}'.encode(), "has one from step 20 to 40 (ols) and one from step 20 to"),
    ],
)
def test_a_record_that_is_garbled_is_told_in_a_sentence(run, content, message):
    directory, write = run
    write(content)
    path = directory / TRAIN_RECORD_NAME
    with pytest.raises(CheckpointError, match=re.escape(message.format(path=path))) as caught:
        read_jumps(directory)
    said = str(caught.value)
    assert str(path) in said
    assert said.endswith("; restore the file, or move it away to have the run read as one without jumps")
    assert "\n" not in said


# What is said of a window


def test_a_window_inside_a_segment_is_not_warned_of():
    assert warn_of_jumps((0, 10, 20), [FIRST, SECOND], "…") == ()
    assert warn_of_jumps((40, 50, 60), [FIRST, SECOND], "…") == ()
    assert warn_of_jumps((), [FIRST], "…") == ()


@pytest.mark.parametrize(
    ("steps", "min_steps", "crossed", "way_out"),
    [
        (
            STEPS[:5],
            2,
            "steps 0 to 50 cross the jump from step 20 to 40 (two-point), which was extrapolated",
            "--steps 40:50 stays inside their last segment",
        ),
        (
            STEPS,
            2,
            "steps 0 to 90 cross 2 jumps, the last from step 60 to 80 (relex:rank=1), which were extrapolated",
            "--steps 80:90 stays inside their last segment",
        ),
        (STEPS, 3, "cross 2 jumps", "--steps 40:60 stays inside their last segment of at least 3 checkpoints"),
        (STEPS, 4, "cross 2 jumps", "none of their 3 segments has 4 checkpoints"),
    ],
)
def test_a_window_across_a_jump_is_told_with_one_that_is_not(steps, min_steps, crossed, way_out):
    (sentence,) = warn_of_jumps(steps, [FIRST, SECOND], "beware", min_steps=min_steps)
    assert crossed in sentence
    assert sentence.endswith(f"extrapolated and not trained, so beware; {way_out}")
    assert "\n" not in sentence
