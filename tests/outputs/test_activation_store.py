"""The store of hidden states: what it keeps, and how zarr and xarray see it."""

import numpy as np
import pytest
import xarray
import zarr

from ckptlin.errors import InputError
from ckptlin.outputs import activation_store
from ckptlin.outputs.activation_store import ActivationStore, open_activation_writer
from ckptlin.outputs.states import pick_states
from tests.outputs.state_steps import DIM, LAYERS, SIZE, append_states, assert_holds, expected_states
from tests.outputs.token_steps import make_responses


def test_what_was_written_is_read_again_in_any_chunks(tmp_path, monkeypatch):
    for chunk in (3 * DIM, 1 << 18):
        monkeypatch.setattr(activation_store, "_CHUNK_VALUES", chunk)
        path = tmp_path / str(chunk)
        append_states(path, [10, 20, 5])
        store = ActivationStore(path)
        assert_holds(store, [10, 20, 5])
        blocks = [store.read_states(1, [20, 5], lo, hi) for lo, hi in store.blocks()]
        assert len(blocks) == (-(-SIZE // 3) if chunk == 3 * DIM else 1)
        np.testing.assert_array_equal(np.concatenate(blocks, axis=1), store.read_states(1, [20, 5]))
        np.testing.assert_array_equal(store.read_states(2, [5], 1, 5)[0], expected_states(5, SIZE)[2, 1:5])


def test_the_tokens_that_states_predict_are_kept(tmp_path):
    append_states(tmp_path / "s", [0])
    store, probes = ActivationStore(tmp_path / "s"), make_responses().probes
    arrays = (store.read_tokens(name) for name in ("response", "position", "token_ids"))
    for response, position, token in zip(*arrays, strict=True):
        assert probes[response].token_ids[position] == token


def test_zarr_and_xarray_open_it(tmp_path):
    append_states(tmp_path / "s", [0, 10])
    group = zarr.open_group(tmp_path / "s", mode="r")
    np.testing.assert_array_equal(group["states"][:, 1], expected_states(10, SIZE))
    with xarray.open_zarr(tmp_path / "s") as opened:
        assert opened.states.dims == ("layer", "step", "token", "coordinate")
        np.testing.assert_array_equal(opened.states.sel(step=10).values, expected_states(10, SIZE))


def test_what_does_not_belong_together_is_refused(tmp_path):
    path = tmp_path / "s"
    append_states(path, [0])
    states = pick_states(make_responses(), num_tokens=100)
    sketch = {"seed": 0, "dim": DIM, "hidden": 8}
    for others, layers, given, message in (
        (pick_states(make_responses(), num_tokens=3), LAYERS, sketch, "the states of other tokens"),
        (states, LAYERS[1:], sketch, "a model of another shape"),
        (states, LAYERS, sketch | {"hidden": 9}, "a model of another shape"),
        (states, LAYERS, sketch | {"seed": 1}, "begun with another sketch"),
    ):
        with (
            pytest.raises(InputError, match=message),
            open_activation_writer(path, others, layers=layers, sketch=given),
        ):
            pass
