import contextlib
import json

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptlin.dtypes import DTYPES, from_zarr
from ckptlin.errors import CorruptChunkError
from ckptlin.store import zarr_plugin  # noqa: F401 (arrays are opened by themselves here)
from ckptlin.store.chunk_codec import (
    COMPRESSORS,
    BloscCompressor,
    compressor_from_dict,
    decode_chunk,
    decode_plain,
    encode_chunk,
    encode_plain,
)
from ckptlin.store.metadata import array_metadata
from tests.strategies import special_bits, trajectories

BF16 = from_zarr("bfloat16")
ARCHIVE = COMPRESSORS["archive"]
# zarr says so of every codec of numcodecs'.
ignore_warning = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.zarr)
each_compressor = pytest.mark.parametrize("compressor", COMPRESSORS.values(), ids=COMPRESSORS.keys())


def awkward_values(dtype, shape=(5, 3, 4)):
    rng = np.random.default_rng(1)
    values = rng.choice(np.array(special_bits(dtype), dtype.bits), shape)
    values[1] = values[0]
    return values.view(dtype.numpy)


def zarr_array(path, shape, chunk, dtype, codecs):
    """Open an array that has exactly our metadata, to be written and read by zarr's own pipeline."""
    path.mkdir()
    names = [f"d{i}" for i in range(len(shape))]
    (path / "zarr.json").write_text(json.dumps(array_metadata(shape, chunk, dtype, codecs, names)))
    return zarr.open_array(path, mode="r+")


@pytest.fixture(autouse=True)
def _zarr_writes_every_chunk():
    with zarr.config.set({"array.write_empty_chunks": True}):
        yield


@ignore_warning
@each_dtype
@each_compressor
def test_zarr_s_own_pipeline_writes_the_same_bytes_and_reads_ours(tmp_path, dtype, compressor):
    values = awkward_values(dtype)
    codecs = compressor.codecs(dtype, delta=True)
    array = zarr_array(tmp_path / "theirs", values.shape, (5, 3, 4), dtype, codecs)
    array[:] = values
    theirs = (tmp_path / "theirs/c/0/0/0").read_bytes()
    ours = encode_chunk(values.view(dtype.bits).reshape(5, 12).copy(), dtype, compressor)
    assert ours == theirs

    out = np.empty((5, 12), dtype.bits)
    decode_chunk(theirs, dtype, out, "the chunk")
    np.testing.assert_array_equal(out.reshape(values.shape), values.view(dtype.bits))

    array = zarr_array(tmp_path / "ours", values.shape, (5, 3, 4), dtype, codecs)
    (tmp_path / "ours/c/0/0").mkdir(parents=True)
    (tmp_path / "ours/c/0/0/0").write_bytes(ours)
    np.testing.assert_array_equal(array[:].view(dtype.bits), values.view(dtype.bits))


@each_dtype
def test_a_chunk_padded_by_zarr_is_ours_padded_with_zeros(tmp_path, dtype):
    """zarr pads what lies beyond the array's last step and last row with its fill value."""
    values = awkward_values(dtype, (5, 3))
    compressor = COMPRESSORS["lz4"]
    array = zarr_array(tmp_path / "a", (5, 3), (8, 4), dtype, compressor.codecs(dtype, delta=True))
    array[:] = values
    padded = np.zeros((8, 4), dtype.bits)
    padded[:5, :3] = values.view(dtype.bits)
    assert (tmp_path / "a/c/0/0").read_bytes() == encode_chunk(padded, dtype, compressor)


@each_dtype
def test_arrays_without_the_step_delta_are_zarr_s_too(tmp_path, dtype):
    values = awkward_values(dtype, (40,))
    compressor = BloscCompressor("zstd", 1, "noshuffle")
    array = zarr_array(tmp_path / "a", (40,), (40,), dtype, compressor.codecs(dtype, delta=False))
    array[:] = values
    data = (tmp_path / "a/c/0").read_bytes()
    assert data == encode_plain(values.view(dtype.bits), compressor)
    out = np.empty(40, dtype.numpy)
    decode_plain(data, out, "the chunk")
    np.testing.assert_array_equal(out.view(dtype.bits), values.view(dtype.bits))


@given(trajectories().filter(lambda t: t[1].size > 0), st.sampled_from(sorted(COMPRESSORS)))
def test_every_bit_comes_back(trajectory, name):
    dtype, bits = trajectory
    out = np.empty_like(bits)
    decode_chunk(encode_chunk(bits.copy(), dtype, COMPRESSORS[name]), dtype, out, "the chunk")
    np.testing.assert_array_equal(out, bits, strict=True)


@given(trajectories().filter(lambda t: t[1].size > 0), hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
def test_an_archive_takes_chunks_of_any_dimensions(trajectory, shape):
    """One byte's types are blosc's, all others pcodec's."""
    dtype, bits = trajectory
    bits = np.resize(bits, shape)
    data = encode_plain(bits, ARCHIVE)
    assert data.startswith(b"pco!") == (dtype.itemsize > 1)
    out = np.empty_like(bits)
    decode_plain(data, out, "the chunk")
    np.testing.assert_array_equal(out, bits, strict=True)


def test_an_archive_is_not_for_arrays_without_the_step_delta():
    with pytest.raises(ValueError, match="pcodec stands behind the step delta only"):
        ARCHIVE.codecs(BF16, delta=False)


@each_compressor
def test_a_compressor_survives_the_record(compressor):
    assert compressor_from_dict(json.loads(json.dumps(compressor.to_dict()))) == compressor


def test_padding_rows_cost_next_to_nothing():
    """Differences are taken to the step after, so that only the last real row meets the zeros.

    lz4 takes a byte for 255 of them.
    """
    bits = np.random.default_rng(0).normal(0, 0.02, (1, 1 << 16)).astype(BF16.numpy).view(np.uint16)
    one_row = encode_chunk(bits.copy(), BF16, COMPRESSORS["lz4"])
    padded = np.zeros((16, 1 << 16), np.uint16)
    padded[0] = bits[0]
    assert len(encode_chunk(padded, BF16, COMPRESSORS["lz4"])) < len(one_row) + 15 * bits.nbytes / 200


def test_the_same_content_gives_the_same_bytes_every_time_from_the_main_thread_too():
    """blosc's own threads would append their blocks as they finish (numcodecs uses them in the main thread)."""
    text = np.random.default_rng(0).integers(97, 107, 8 << 20).astype(np.uint8)
    assert len({encode_plain(text, BloscCompressor("zstd", 1, "noshuffle")) for _ in range(4)}) == 1


SMALL = {
    name: encode_chunk(awkward_values(BF16).view(np.uint16).reshape(5, 12).copy(), BF16, COMPRESSORS[name])
    for name in ("lz4", "archive")
}
each_small = pytest.mark.parametrize("small", SMALL.values(), ids=SMALL.keys())


@each_small
@settings(max_examples=300)
@given(data=st.data())
def test_a_flipped_bit_is_found(small, data):
    position = data.draw(st.integers(0, 8 * len(small) - 1))
    damaged = bytearray(small)
    damaged[position // 8] ^= 1 << position % 8
    with pytest.raises(CorruptChunkError, match=r"the chunk of `w` is corrupted.*checksum.*ingest"):
        decode_chunk(bytes(damaged), BF16, np.empty((5, 12), np.uint16), "the chunk of `w`")


@each_small
@pytest.mark.parametrize("length", [0, 1, 3, 4, 16, 19, 20, 21, -5, -1])
def test_a_chunk_cut_short_is_found(small, length):
    with pytest.raises(CorruptChunkError, match="the chunk of `w` is corrupted"):
        decode_chunk(small[:length], BF16, np.empty((5, 12), np.uint16), "the chunk of `w`")


@pytest.mark.parametrize("shape", [(5, 11), (5, 13)])
def test_a_chunk_of_another_size_is_found(shape):
    with pytest.raises(CorruptChunkError, match=r"`w` holds 120 bytes where 1[13]0 were expected"):
        decode_chunk(SMALL["lz4"], BF16, np.empty(shape, np.uint16), "the chunk of `w`")


@pytest.mark.parametrize(
    ("shape", "found"), [((5, 11), "more than 110"), ((5, 13), "120"), ((1, 1), "more than 2")]
)
def test_an_archived_chunk_of_another_size_is_found(shape, found):
    out = np.empty(shape, np.uint16)
    with pytest.raises(CorruptChunkError, match=f"`w` holds {found} bytes where {out.nbytes} were expected"):
        decode_chunk(SMALL["archive"], BF16, out, "the chunk of `w`")


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize != 2], ids=lambda d: d.zarr)
def test_an_archived_chunk_of_numbers_of_another_width_is_found(dtype):
    with pytest.raises(CorruptChunkError, match=r"the chunk of `w` is corrupted: .*; restore the file"):
        decode_chunk(SMALL["archive"], dtype, np.empty((5, 12), dtype.bits), "the chunk of `w`")


@settings(max_examples=500)
@given(st.data())
def test_damage_under_a_checksum_that_matches_is_found_or_decodes_to_as_many_numbers(data):
    """Whatever pcodec makes of it, no other exception comes out."""
    body = bytearray(SMALL["archive"][: data.draw(st.integers(0, len(SMALL["archive"]) - 4))])
    for position in data.draw(st.lists(st.integers(0, 8 * len(body) - 1), max_size=3)) if body else ():
        body[position // 8] ^= 1 << position % 8
    chunk = bytes(body) + google_crc32c.value(bytes(body)).to_bytes(4, "little")
    with contextlib.suppress(CorruptChunkError):
        decode_chunk(chunk, BF16, np.empty((5, 12), np.uint16), "the chunk of `w`")
