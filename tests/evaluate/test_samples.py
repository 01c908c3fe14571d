"""Samples on disk: whole after a kill at any byte, and nothing damaged is passed over."""

import errno
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin.errors import DiskFullError, InputError
from ckptlin.evaluate.samples import Sample, SampleFile, read_samples


def sample(problem="p", number=0, text="four\n", ids=(3, 1)):
    return Sample(problem, number, 7, text, True, ids)


def test_what_was_written_is_read_again(tmp_path):
    written = [sample(number=0), sample(number=1, text="é \u2028 \x00 {", ids=()), sample("q")]
    with SampleFile(tmp_path / "a.jsonl") as file:
        file.append(written[:2])
        file.append(written[2:])
        assert file.done == {("p", 0), ("p", 1), ("q", 0)}
        assert file.num_tokens == 4
    assert list(read_samples(tmp_path / "a.jsonl")) == written
    with SampleFile(tmp_path / "a.jsonl") as file:
        assert file.done == {("p", 0), ("p", 1), ("q", 0)}


def test_samples_are_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size) or real(fd))
    with SampleFile(tmp_path / "a.jsonl") as file:
        file.append([sample()])
        assert synced[-1] == (tmp_path / "a.jsonl").stat().st_size > 0


def test_a_file_cut_off_anywhere_goes_on_without_its_last_line(tmp_path):
    path = tmp_path / "a.jsonl"
    with SampleFile(path) as file:
        file.append([sample(number=0), sample(number=1, text="é" * 5)])
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with SampleFile(path) as file:
            assert len(file.done) == (size >= first_line)
            missing = [sample(number=n, text="é" * 5 if n else "four\n") for n in range(len(file.done), 2)]
            file.append(missing)
        assert path.read_bytes() == whole, size


@settings(max_examples=50, deadline=None)
@given(st.text(), st.lists(st.integers(0, 2**31)))
def test_any_text_survives(tmp_path_factory, text, ids):
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    with SampleFile(path) as file:
        file.append([sample(text=text, ids=tuple(ids))])
    [found] = read_samples(path)
    assert found.text == text
    assert found.token_ids == tuple(ids)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"id": "p"}', json.dumps(sample().to_dict() | {"finished": 1}), json.dumps({"id": 3})],
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(sample().to_dict())}\n{line}\n")
    with pytest.raises(InputError, match=r"line 2 of .*a\.jsonl is no sample"):
        SampleFile(path)


def test_the_same_sample_twice_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(sample().to_dict())}\n" * 2)
    with pytest.raises(InputError, match="twice"):
        SampleFile(path)


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    with SampleFile(path) as file:
        file.append([sample()])

        def full(fd):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="same command again"):
            file.append([sample("q")])
        assert file.done == {("p", 0)}
    monkeypatch.undo()
    with SampleFile(path) as file:
        assert ("p", 0) in file.done


def test_a_second_writer_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    with SampleFile(path) as file:
        file.append([sample()])
        with path.open("ab") as half:
            half.write(b'{"id": "half')  # as a process does that writes just now
        before = path.read_bytes()
        with pytest.raises(InputError, match="another process is writing samples"):
            SampleFile(path)
        assert path.read_bytes() == before
