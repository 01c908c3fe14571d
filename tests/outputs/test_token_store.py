"""The store of log-probabilities: what it keeps, and how zarr and xarray see it."""

import numpy as np
import pytest
import xarray
import zarr

from ckptlin.errors import InputError
from ckptlin.outputs import token_store
from ckptlin.outputs.token_store import TokenStore, open_token_writer
from tests.outputs.token_steps import append_steps, assert_holds, expected, make_responses


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
