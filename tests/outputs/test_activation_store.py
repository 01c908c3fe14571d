"""The store of hidden states: whole after a kill at any operation, and open to zarr and xarray."""

import json
import shutil

import numpy as np
import pytest
import xarray
import zarr

from ckptlin.errors import (
    CorruptChunkError,
    InputError,
    NotAStoreError,
    SelectionError,
    StepConflictError,
    StoreVersionError,
)
from ckptlin.outputs import activation_store
from ckptlin.outputs.activation_store import ActivationStore, open_activation_writer
from ckptlin.outputs.states import pick_states
from ckptlin.outputs.token_store import TokenStep
from tests.outputs.state_steps import DIM, LAYERS, append_states, expected_states
from tests.outputs.token_steps import append_steps, make_responses

APPEND = "tests.outputs.state_steps:append_states"
SIZE = pick_states(make_responses(), num_tokens=100).size


def assert_holds(store, steps):
    assert store.steps == tuple(sorted(steps))
    for layer in range(len(LAYERS)):
        expected = [expected_states(step, SIZE)[layer] for step in store.steps]
        np.testing.assert_array_equal(
            store.read_states(layer, store.steps), np.array(expected, np.float32).reshape(-1, SIZE, DIM)
        )


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


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("before", [[], [0, 10]], ids=["new", "append"])
def test_a_writer_killed_at_any_operation_leaves_whole_steps(before, stride, forked, tmp_path):
    after = [*before, 20, 30]
    base, path = tmp_path / "base", tmp_path / "store"
    if before:
        append_states(base, before)
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
            found = list(ActivationStore(path).steps)
            assert found in [after[:n] for n in range(len(before), len(after) + 1)]
            assert_holds(ActivationStore(path), found)
        append_states(path, after)
        assert_holds(ActivationStore(path), after)
    assert die_at > 10


def test_a_full_disk_leaves_the_store_as_it_was(forked, tmp_path):
    path = tmp_path / "store"
    append_states(path, [0])
    assert forked.call(APPEND, path, [0, 10], full_at=3).error == "DiskFullError"
    assert_holds(ActivationStore(path), [0])
    append_states(path, [0, 10])
    assert_holds(ActivationStore(path), [0, 10])


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
    with (
        open_activation_writer(path, states, layers=LAYERS, sketch=sketch) as writer,
        pytest.raises(StepConflictError, match=r"step 0 is in .* already"),
    ):
        writer.append(TokenStep(0, "run", "other", {}, {}, {}), expected_states(1, SIZE))
    with pytest.raises(SelectionError, match="step 7 is not in"):
        ActivationStore(path).read_states(0, [7])


def test_what_is_no_store_of_activations_is_told(tmp_path):
    with pytest.raises(NotAStoreError, match="holds no store of activations"):
        ActivationStore(tmp_path)
    append_steps(tmp_path / "tokens", [0])
    with pytest.raises(NotAStoreError, match="is something else's"):
        ActivationStore(tmp_path / "tokens")
    with pytest.raises(InputError, match="is a URL"):
        ActivationStore("s3://bucket/s")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").touch()
    with pytest.raises(InputError, match=r"holds something else \(notes\)"):
        append_states(tmp_path / "full", [0])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        append_states(tmp_path / "file", [0])


def test_damage_and_later_formats_are_told(tmp_path):
    path = tmp_path / "s"
    append_states(path, [0])
    (path / "states/c/1/0/0/0").unlink()
    with pytest.raises(CorruptChunkError, match="is missing"):
        ActivationStore(path).read_states(1, [0])
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["ckptlin_activations"]["format_version"] = 2
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreVersionError, match="has format version 2"):
        ActivationStore(path)
