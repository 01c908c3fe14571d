"""bfloat16 and float8 in zarr, and in a reader that is not zarr-python."""

import json
import math
import os

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr
from zarr.core.dtype.common import DataTypeValidationError

from ckptlin.dtypes import from_zarr
from ckptlin.store import zarr_plugin  # noqa: F401 (arrays are opened by themselves here)
from ckptlin.store.chunk_codec import COMPRESSORS, encode_plain
from ckptlin.store.metadata import array_metadata
from ckptlin.store.zarr_dtypes import BFloat16, Float8E4M3FN, Float8E5M2

TYPES = [BFloat16, Float8E4M3FN, Float8E5M2]
DTYPES = [from_zarr(name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")]
each_type = pytest.mark.parametrize("data_type", TYPES, ids=lambda t: t._zarr_v3_name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.zarr)


def every_value(dtype):
    """Every bit pattern of the type, NaNs of all kinds among them, as a matrix of 16 columns."""
    return np.arange(1 << (8 * dtype.itemsize)).astype(dtype.bits).view(dtype.numpy).reshape(-1, 16)


def tensorstore_spec(path):
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{os.fspath(path)}/"}}


@each_dtype
def test_what_zarr_writes_tensorstore_reads_bit_for_bit(tmp_path, dtype):
    values = every_value(dtype)
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.create_array(
            tmp_path / "a", shape=values.shape, chunks=(100, 7), dtype=dtype.numpy, compressors=None
        )
        array[:] = values
    found = tensorstore.open(tensorstore_spec(tmp_path / "a")).result().read().result()
    assert found.dtype == dtype.numpy
    np.testing.assert_array_equal(found.view(dtype.bits), values.view(dtype.bits))


@each_dtype
def test_what_tensorstore_writes_zarr_reads_bit_for_bit(tmp_path, dtype):
    values = every_value(dtype)
    metadata = {
        "shape": list(values.shape),
        "data_type": dtype.zarr,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [100, 7]}},
    }
    spec = {**tensorstore_spec(tmp_path / "a"), "metadata": metadata}
    tensorstore.open(spec, create=True).result().write(values).result()
    found = zarr.open_array(tmp_path / "a", mode="r")
    assert found.dtype == dtype.numpy
    np.testing.assert_array_equal(found[:].view(dtype.bits), values.view(dtype.bits))


@each_dtype
def test_the_metadata_that_a_store_has_without_the_step_delta_is_read_by_tensorstore(tmp_path, dtype):
    """Its blosc and crc32c codecs, dimension names and key encoding are understood as they are."""
    values = every_value(dtype)[:64]
    codecs = COMPRESSORS["lz4"].codecs(dtype, delta=False)
    document = array_metadata(values.shape, values.shape, dtype, codecs, ["w.0", "w.1"])
    (tmp_path / "c/0").mkdir(parents=True)
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    (tmp_path / "c/0/0").write_bytes(encode_plain(values.view(dtype.bits).copy(), COMPRESSORS["lz4"]))
    array = tensorstore.open(tensorstore_spec(tmp_path)).result()
    assert array.domain.labels == ("w.0", "w.1")
    np.testing.assert_array_equal(array.read().result().view(dtype.bits), values.view(dtype.bits))


@each_type
@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, math.nan, math.inf, -math.inf])
def test_fill_values_survive_the_metadata(tmp_path, data_type, value):
    scalar = data_type().to_native_dtype().type(value)
    zarr.create_array(
        tmp_path / "a", shape=(2,), chunks=(2,), dtype=data_type().to_native_dtype(), fill_value=scalar
    )
    found = zarr.open_array(tmp_path / "a", mode="r").fill_value
    assert type(found) is type(scalar)
    np.testing.assert_equal(float(found), float(scalar))
    if not math.isnan(scalar):  # float8_e4m3fn has no infinities
        assert math.copysign(1, found) == math.copysign(1, scalar)


@each_type
def test_the_data_type_is_told_from_others(data_type):
    native = np.dtype(data_type._scalar)
    assert data_type.from_native_dtype(native) == data_type()
    assert data_type.from_json(data_type._zarr_v3_name, zarr_format=3) == data_type()
    assert data_type().item_size == native.itemsize
    assert data_type().default_scalar() == 0
    for other in (np.dtype("float16"), np.dtype("uint8"), np.dtype(ml_dtypes.float8_e4m3)):
        with pytest.raises(DataTypeValidationError):
            data_type.from_native_dtype(other)
    with pytest.raises(DataTypeValidationError):
        data_type.from_json("float16", zarr_format=3)
    with pytest.raises(TypeError):
        data_type().cast_scalar("one")


@each_type
def test_zarr_v2_has_no_such_type(tmp_path, data_type):
    with pytest.raises(DataTypeValidationError, match="zarr v2"):
        zarr.create_array(
            tmp_path / "a", shape=(2,), chunks=(2,), dtype=data_type().to_native_dtype(), zarr_format=2
        )
