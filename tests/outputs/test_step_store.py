"""Both stores of steps: whole after a kill at any operation, one writer at a time, and nothing overwritten."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import zarr

from ckptlin.errors import (
    CorruptChunkError,
    InputError,
    NotAStoreError,
    SelectionError,
    StepConflictError,
    StoreLockedError,
    StoreVersionError,
)
from ckptlin.outputs.activation_store import ActivationStore
from ckptlin.outputs.step_store import StepStore, TokenStep
from ckptlin.outputs.token_store import TokenStore
from tests.outputs import state_steps, token_steps


@dataclass(frozen=True)
class Kind:
    """A kind of store, as the tests write and read it."""

    store: type[StepStore]
    name: str
    append: Callable[..., None] = field(repr=False)
    open_writer: Callable[..., Any] = field(repr=False)
    assert_holds: Callable[..., None] = field(repr=False)
    values: Callable[[int], Any] = field(repr=False)
    read: Callable[[StepStore, int], Any] = field(repr=False)
    chunk: str

    @property
    def target(self) -> str:
        """What a forked process calls to append."""
        return f"{self.append.__module__}:{self.append.__name__}"


KINDS = [
    Kind(
        TokenStore,
        "log-probabilities",
        token_steps.append_steps,
        token_steps.open_writer,
        token_steps.assert_holds,
        lambda step: token_steps.expected(step, 10),
        lambda store, step: store.read_log_probs([step]),
        "logprobs/c/0/0",
    ),
    Kind(
        ActivationStore,
        "activations",
        state_steps.append_states,
        state_steps.open_writer,
        state_steps.assert_holds,
        lambda step: state_steps.expected_states(step, state_steps.SIZE),
        lambda store, step: store.read_states(1, [step]),
        "states/c/1/0/0/0",
    ),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request) -> Kind:
    return request.param


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("before", [[], [0, 10]], ids=["new", "append"])
def test_a_writer_killed_at_any_operation_leaves_whole_steps(kind, before, stride, forked, tmp_path):
    after = [*before, 20, 30]
    base, path = tmp_path / "base", tmp_path / "store"
    if before:
        kind.append(base, before)
    die_at = 1 - stride
    while True:
        die_at += stride
        shutil.rmtree(path, ignore_errors=True)
        if before:
            shutil.copytree(base, path)
        outcome = forked.call(kind.target, path, after, die_at=die_at)
        assert outcome.error == ""
        if outcome.signal == 0:
            break
        if (path / "zarr.json").exists():
            found = list(kind.store(path).steps)
            assert found in [after[:n] for n in range(len(before), len(after) + 1)]
            kind.assert_holds(kind.store(path), found)
        kind.append(path, after)
        kind.assert_holds(kind.store(path), after)
    assert die_at > 10


def test_a_full_disk_leaves_the_store_as_it_was(kind, forked, tmp_path):
    path = tmp_path / "store"
    kind.append(path, [0])
    assert forked.call(kind.target, path, [0, 10], full_at=3).error == "DiskFullError"
    kind.assert_holds(kind.store(path), [0])
    kind.append(path, [0, 10])
    kind.assert_holds(kind.store(path), [0, 10])


def test_a_step_is_not_written_twice_nor_by_two(kind, tmp_path):
    kind.append(tmp_path / "s", [0])
    with kind.open_writer(tmp_path / "s") as writer:
        with pytest.raises(StepConflictError, match=r"step 0 is in .* already"):
            writer.append(TokenStep(0, "run", "other", {}, {}, {}), kind.values(1))
        with (
            pytest.raises(StoreLockedError, match="another process is writing"),
            kind.open_writer(tmp_path / "s"),
        ):
            pass
    kind.assert_holds(kind.store(tmp_path / "s"), [0])


def test_what_is_no_such_store_is_told(kind, tmp_path):
    assert kind.store.existing(tmp_path) is None
    with pytest.raises(NotAStoreError, match=f"holds no store of {kind.name}; make one with `ckptlin"):
        kind.store(tmp_path)
    zarr.create_group(tmp_path / "group")
    [other] = [other for other in KINDS if other is not kind]
    other.append(tmp_path / "other", [0])
    for path in (tmp_path / "group", tmp_path / "other"):
        with pytest.raises(NotAStoreError, match=f"is no store of {kind.name}: its zarr.json is something els"):
            kind.store(path)
    with pytest.raises(InputError, match="s3://bucket/x is a URL"):
        kind.store("s3://bucket/x")


def test_what_lies_there_is_not_overwritten(kind, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for place, message in (
        (tmp_path, r"holds something else \(notes.txt\)"),
        (tmp_path / "notes.txt", "a file"),
    ):
        with pytest.raises(InputError, match=message), kind.open_writer(place):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "x"


def test_damage_and_later_formats_are_told(kind, tmp_path):
    path = tmp_path / "s"
    kind.append(path, [0])
    with pytest.raises(SelectionError, match="step 7 is not in"):
        kind.read(kind.store(path), 7)
    data = bytearray((path / kind.chunk).read_bytes())
    data[-8] ^= 1
    (path / kind.chunk).write_bytes(data)
    with pytest.raises(CorruptChunkError, match="checksum"):
        kind.read(kind.store(path), 0)
    (path / kind.chunk).unlink()
    with pytest.raises(CorruptChunkError, match="is missing"):
        kind.read(kind.store(path), 0)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"][kind.store.KEY]["format_version"] = 2
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreVersionError, match="has format version 2"):
        kind.store(path)
