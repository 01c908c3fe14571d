"""The store of log-probabilities: whole after a kill at any operation, and open to zarr and xarray."""

import json
import shutil

import numpy as np
import pytest
import xarray
import zarr

from ckptlin.errors import CorruptChunkError, InputError, NotAStoreError, StepConflictError, StoreLockedError
from ckptlin.outputs import token_store
from ckptlin.outputs.token_store import TokenStep, TokenStore, open_token_writer
from tests.outputs.token_steps import append_steps, expected, make_responses

APPEND = "tests.outputs.token_steps:append_steps"


def assert_holds(store, steps):
    assert store.steps == tuple(sorted(steps))
    for step in steps:
        np.testing.assert_array_equal(store.read_log_probs([step])[0], expected(step, 10))
    if steps:
        np.testing.assert_array_equal(store.read("entropy"), -expected(steps[0], 10))
        assert store.entropy_step == steps[0]


def test_what_was_written_is_read_again(tmp_path, monkeypatch):
    for chunk in (3, 1 << 20):
        monkeypatch.setattr(token_store, "_CHUNK", chunk)
        path = tmp_path / str(chunk)
        append_steps(path, [10, 20, 5])
        store = TokenStore(path)
        assert_holds(store, [10, 20, 5])
        responses = make_responses()
        np.testing.assert_array_equal(
            store.read("token_ids"), np.concatenate([p.token_ids for p in responses.probes])
        )
        assert store.read("response").tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 3, 3]
        assert store.read("position").tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 0, 1]
        assert store.read("prompt").tolist() == [0, 0, 1, 1]
        np.testing.assert_array_equal(
            store.read("prompt_ids"), np.concatenate([p.prompt_ids for p in responses.probes[::2]])
        )
        assert store.read_json("names") == [["p0", 0], ["p0", 1], ["p1", 0], ["p1", 1]]
        assert store.read_json("texts")["3"] == "3"
        np.testing.assert_array_equal(
            store.read_log_probs([20, 5], 2, 8), np.stack([expected(20, 10)[2:8], expected(5, 10)[2:8]])
        )


def test_zarr_and_xarray_open_it(tmp_path):
    append_steps(tmp_path / "s", [0, 10])
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "s", mode="r")["logprobs"][1], expected(10, 10))
    with xarray.open_zarr(tmp_path / "s") as opened:
        assert opened.logprobs.dims == ("step", "token")
        assert opened.step.values.tolist() == [0, 10]
        np.testing.assert_array_equal(opened.logprobs.sel(step=10).values, expected(10, 10))
        assert set(opened.token_ids.dims) == set(opened.response.dims) == {"token"}


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("before", [[], [0, 10]], ids=["new", "append"])
def test_a_writer_killed_at_any_operation_leaves_whole_steps(before, stride, forked, tmp_path):
    after = [*before, 20, 30]
    base, path = tmp_path / "base", tmp_path / "store"
    if before:
        append_steps(base, before)
    die_at = 1 - stride
    while True:
        die_at += stride
        shutil.rmtree(path, ignore_errors=True)
        if before:
            shutil.copytree(base, path)
        outcome = forked.call(APPEND, path, after, die_at=die_at)
        assert outcome.error == ""
        if outcome.signal == 0:
            break
        if (path / "zarr.json").exists():
            found = list(TokenStore(path).steps)
            assert found in [after[:n] for n in range(len(before), len(after) + 1)]
            assert_holds(TokenStore(path), found)
        append_steps(path, after)
        assert_holds(TokenStore(path), after)
    assert die_at > 10


def test_a_full_disk_leaves_the_store_as_it_was(forked, tmp_path):
    path = tmp_path / "store"
    append_steps(path, [0])
    outcome = forked.call(APPEND, path, [0, 10], full_at=3)
    assert outcome.error == "DiskFullError"
    assert_holds(TokenStore(path), [0])
    append_steps(path, [0, 10])
    assert_holds(TokenStore(path), [0, 10])


def test_a_step_is_not_written_twice(tmp_path):
    append_steps(tmp_path / "s", [0])
    with open_token_writer(tmp_path / "s", make_responses(), tokenizer="t", texts={}) as writer:
        step = TokenStep(0, "run", "other", {}, {}, {})
        with pytest.raises(StepConflictError, match=r"step 0 is in .* already"):
            writer.append(step, expected(1, 10))
        with (
            pytest.raises(StoreLockedError, match="another process is writing"),
            open_token_writer(tmp_path / "s", make_responses(), tokenizer="t", texts={}),
        ):
            pass


@pytest.mark.parametrize(
    ("responses", "tokenizer", "message"),
    [(make_responses(seed=1), "t", "other responses"), (make_responses(), "u", "another tokenizer")],
)
def test_other_responses_go_elsewhere(responses, tokenizer, message, tmp_path):
    append_steps(tmp_path / "s", [0])
    with (
        pytest.raises(InputError, match=message),
        open_token_writer(tmp_path / "s", responses, tokenizer=tokenizer, texts={}),
    ):
        pass
    assert_holds(TokenStore(tmp_path / "s"), [0])


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(NotAStoreError, match="holds no store of log-probabilities"):
        TokenStore(tmp_path)
    zarr.create_group(tmp_path / "group")
    with pytest.raises(NotAStoreError, match="something else's"):
        TokenStore(tmp_path / "group")
    with pytest.raises(InputError, match="s3://bucket/x is a URL"):
        TokenStore("s3://bucket/x")
    (tmp_path / "notes.txt").write_text("x")
    for place, message in ((tmp_path, "holds something else"), (tmp_path / "notes.txt", "is a file")):
        with (
            pytest.raises(InputError, match=message),
            open_token_writer(place, make_responses(), tokenizer="t", texts={}),
        ):
            pass
    assert (tmp_path / "notes.txt").read_text() == "x"


def test_damage_is_reported(tmp_path):
    append_steps(tmp_path / "s", [0])
    chunk = tmp_path / "s/logprobs/c/0/0"
    data = bytearray(chunk.read_bytes())
    data[-8] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CorruptChunkError, match="checksum"):
        TokenStore(tmp_path / "s").read_log_probs([0])
    chunk.unlink()
    with pytest.raises(CorruptChunkError, match="is missing"):
        TokenStore(tmp_path / "s").read_log_probs([0])
    root = json.loads((tmp_path / "s/zarr.json").read_text())
    root["attributes"]["ckptlin_tokens"]["format_version"] = 2
    (tmp_path / "s/zarr.json").write_text(json.dumps(root))
    with pytest.raises(ValueError, match="format version 2"):
        TokenStore(tmp_path / "s")
