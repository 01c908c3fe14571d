"""The kernels under pytest-benchmark: `make bench` times them, a plain run of the tests checks each result."""

import ml_dtypes
import numpy as np
import pytest

from ckptlin.dtypes import from_zarr
from ckptlin.kernels import oracle
from ckptlin.kernels.regression import COUNT, Abscissa, BlockRegression
from ckptlin.kernels.step_delta import FLOAT, delta_decode, delta_encode
from ckptlin.kernels.weighted_sum import BlockSum
from ckptlin.store.chunk_codec import COMPRESSORS, decode_chunk, encode_chunk

NUM_STEPS, NUM_PARAMS = 14, 1 << 16
BF16 = from_zarr("bfloat16")
STEPS = np.arange(NUM_STEPS) * 100


@pytest.fixture(scope="module")
def bits():
    """Words of bfloat16 of which some change between checkpoints: 1.8 MiB, which stay in the cache."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(NUM_PARAMS) * 0.02
    moves = rng.standard_normal((NUM_STEPS, NUM_PARAMS)) * 1.5e-5
    return (weights + np.cumsum(moves, axis=0)).astype(ml_dtypes.bfloat16).view(BF16.bits)


@pytest.mark.parametrize("maps", [(), ("r2", "slope")], ids=["no maps", "r2 and slope"])
def test_regression(benchmark, bits, maps):
    abscissa = Abscissa.of(STEPS)
    fit, trusted = benchmark(lambda: BlockRegression(BF16, abscissa, NUM_PARAMS, maps).fit(bits))
    expected = oracle.fit_block(bits.view(BF16.numpy), STEPS)
    assert trusted
    assert fit.counts[COUNT.unchanged] == expected.counts["unchanged"]
    assert fit.histogram[0].sum() == np.isfinite(expected.r2).sum()
    if maps:
        np.testing.assert_allclose(fit.r2, expected.r2, atol=1e-5)
        np.testing.assert_allclose(fit.slope, expected.slope, rtol=1e-4, atol=1e-12)


def test_step_delta_encode(benchmark, bits):
    work = bits.copy()

    def setup():
        work[:] = bits
        return (work, FLOAT), {}

    benchmark.pedantic(delta_encode, setup=setup, rounds=100)
    # The last row stays as it is; the others hold differences.
    assert (work[:-1] == 0).sum() == (bits[1:] == bits[:-1]).sum()
    delta_decode(work, FLOAT)
    np.testing.assert_array_equal(work, bits)


def test_step_delta_decode(benchmark, bits):
    encoded = bits.copy()
    delta_encode(encoded, FLOAT)
    work = encoded.copy()

    def setup():
        work[:] = encoded
        return (work, FLOAT), {}

    benchmark.pedantic(delta_decode, setup=setup, rounds=100)
    np.testing.assert_array_equal(work, bits)


def test_weighted_sum(benchmark, bits):
    coefficients = np.linspace(-0.1, 0.3, NUM_STEPS)
    coefficients[0] = 0.0

    def predict():
        total = BlockSum(BF16, bits[0])
        total.add(bits, coefficients)
        return total.finish(bits[-1], None, BF16)

    found = benchmark(predict).values.view(BF16.numpy).astype(np.float64)
    rows = bits.view(BF16.numpy).astype(np.float64)
    expected = rows[0] + coefficients @ (rows - rows[0])
    # Half a unit in the last place of 8 bits.
    np.testing.assert_allclose(found, expected, rtol=2.0**-8)


@pytest.mark.parametrize("codec", sorted(COMPRESSORS))
def test_chunk_encode(benchmark, bits, codec):
    data = benchmark(lambda: encode_chunk(bits.copy(), BF16, COMPRESSORS[codec]))
    assert len(data) < bits.nbytes / 3
    out = np.empty_like(bits)
    decode_chunk(data, BF16, out, "chunk")
    np.testing.assert_array_equal(out, bits)


@pytest.mark.parametrize("codec", sorted(COMPRESSORS))
def test_chunk_decode(benchmark, bits, codec):
    data = encode_chunk(bits.copy(), BF16, COMPRESSORS[codec])
    out = np.empty_like(bits)
    benchmark(lambda: decode_chunk(data, BF16, out, "chunk"))
    np.testing.assert_array_equal(out, bits)
