import asyncio
import json

import numpy as np
import pytest
import zarr

from ckptlin.dtypes import DTYPES
from ckptlin.store import zarr_plugin  # noqa: F401 (arrays are opened by themselves here)
from ckptlin.store.codec_names import STEP_DELTA
from ckptlin.store.step_delta import StepDelta
from tests.strategies import special_bits


def saved(path, values, chunks):
    form = {"shape": values.shape, "chunks": chunks, "dtype": values.dtype}
    array = zarr.create_array(path, **form, filters=[StepDelta()])
    array[...] = values
    return zarr.open_array(path, mode="r+")


@pytest.fixture(autouse=True)
def _zarr_writes_every_chunk():
    with zarr.config.set({"array.write_empty_chunks": True}):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.zarr)
def test_an_array_of_any_element_type_comes_back_bit_for_bit(tmp_path, dtype):
    special = np.array(special_bits(dtype), dtype.bits)
    values = np.random.default_rng(0).choice(special, (7, 5)).view(dtype.numpy)
    array = saved(tmp_path / "a", values, (4, 3))
    np.testing.assert_array_equal(array[:].view(dtype.bits), values.view(dtype.bits))
    codecs = json.loads((tmp_path / "a/zarr.json").read_text())["codecs"]
    assert codecs[0] == {"name": STEP_DELTA}


def test_rows_may_be_overwritten_and_read_one_by_one(tmp_path):
    values = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    array = saved(tmp_path / "a", values, (4, 6))
    values[3:6] = -0.0
    array[3:6] = values[3:6]
    np.testing.assert_array_equal(array[:].view(np.uint32), values.view(np.uint32))
    np.testing.assert_array_equal(array[4, 2:5], values[4, 2:5])


@pytest.mark.parametrize("layout", ["F", "strided", "big-endian"])
def test_the_memory_layout_of_what_is_written_does_not_matter(tmp_path, layout):
    values = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    given = {
        "F": np.asfortranarray(values),
        "strided": np.repeat(values, 2, axis=1)[:, ::2],
        "big-endian": values.astype(">f4"),
    }[layout]
    np.testing.assert_array_equal(saved(tmp_path / "a", given, (4, 6))[:], values)


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "S4"])
def test_other_element_types_are_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match=f"{STEP_DELTA} is not defined for arrays of"):
        zarr.create_array(tmp_path / "a", shape=(4,), chunks=(4,), dtype=dtype, filters=[StepDelta()])


def test_an_array_without_dimensions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one dimension"):
        zarr.create_array(tmp_path / "a", shape=(), chunks=(), dtype="float32", filters=[StepDelta()])


def test_a_configuration_is_not_expected():
    assert StepDelta.from_dict({"name": STEP_DELTA}) == StepDelta()
    assert StepDelta.from_dict({"name": STEP_DELTA, "configuration": {}}) == StepDelta()
    with pytest.raises(ValueError, match="zstd"):
        StepDelta.from_dict({"name": "zstd"})


def test_what_is_encoded_is_left_as_it_was():
    """zarr hands its codecs the caller's own array when a whole chunk is written."""
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    before = values.copy()
    array = zarr.create_array({}, shape=(4, 3), chunks=(4, 3), dtype="float32", filters=[StepDelta()])
    array[:] = values
    np.testing.assert_array_equal(values, before)
    assert asyncio.run(array.async_array.getitem((3, 2))) == 11
