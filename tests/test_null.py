import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin import null
from ckptlin.dtypes import DTYPES, from_safetensors
from ckptlin.errors import InputError
from ckptlin.null import simulate_null
from ckptlin.populations import PAPER_MIN_DISTINCT, PAPER_MIN_RANGE

F64, F32, F16, BF16 = (from_safetensors(name) for name in ("F64", "F32", "F16", "BF16"))
FLOATS = [dtype for dtype in DTYPES if dtype.is_float]
NARROW = [dtype for dtype in FLOATS if dtype.itemsize < 8]


def grid_walks(dtype, *, sigma, steps=range(14), num_sampled=4096, magnitude=0.02, frozen=0.0, seed=1):
    """Trajectories of float64 walks of normally distributed weights, rounded to a dtype."""
    rng = np.random.default_rng(seed)
    gaps = np.diff(np.asarray(steps))[:, None]
    increments = sigma * np.sqrt(gaps) * rng.standard_normal((gaps.size, num_sampled))
    increments[:, rng.random(num_sampled) < frozen] = 0.0
    first = magnitude * rng.standard_normal(num_sampled)
    hidden = np.vstack([first, first + np.cumsum(increments, axis=0)])
    return hidden.astype(dtype.numpy).astype(np.float64)


def simulated_walks(sample, steps, dtype, *, num_paths, seed=0):
    """The calibrated paths themselves, which `simulate_null` does not hand out; for unfrozen samples."""
    increments = np.diff(sample, axis=0)
    scale = np.abs(increments).max()
    squares = np.einsum("ij,ij->j", increments / scale, increments / scale)
    walks = null._Walks(
        sample[0],
        squares > 0,
        np.diff(np.asarray(steps, float)),
        scale,
        null._Grid.of(dtype),
        num_paths,
        np.random.default_rng(seed),
    )
    log_sigma, walking = null._calibrate(walks, squares)
    assert walking == 1.0
    return walks.paths(log_sigma), math.exp(log_sigma)


def share_above(r2, threshold=0.7):
    return float(np.mean(r2 > threshold))


def standard_error(share, count):
    return math.sqrt(share * (1 - share) / count)


# --- the unrounded null -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_steps", "share", "median"), [(11, 0.277, 0.447), (14, 0.270, 0.439), (21, 0.263, 0.430)]
)
def test_unrounded_walks_look_linear_as_often_as_plain_random_walks(num_steps, share, median):
    num_paths = 40_000
    result = simulate_null(
        grid_walks(F64, sigma=1e-4, steps=range(num_steps)), range(num_steps), F64, num_paths=num_paths
    )
    steps = np.arange(num_steps) - (num_steps - 1) / 2
    walks = np.random.default_rng(7).standard_normal((num_steps - 1, num_paths)).cumsum(axis=0)
    walks = np.vstack([np.zeros(num_paths), walks])
    walks -= walks.mean(axis=0)
    oracle = (steps @ walks) ** 2 / ((steps @ steps) * (walks**2).sum(axis=0))

    error = standard_error(share, num_paths)
    assert result.moved.all()
    assert share_above(result.r2) == pytest.approx(share, abs=4 * error)
    assert share_above(result.r2) == pytest.approx(share_above(oracle), abs=4 * math.sqrt(2) * error)
    assert np.median(result.r2) == pytest.approx(median, abs=0.012)
    assert np.median(result.r2) == pytest.approx(np.median(oracle), abs=0.015)


@pytest.mark.parametrize("exponent", [-900, -60, 0, 60, 900])
def test_float64_null_does_not_depend_on_the_scale_of_the_weights(exponent):
    sample = grid_walks(F64, sigma=1e-4, num_sampled=500)
    here = simulate_null(sample, range(14), F64)
    there = simulate_null(np.ldexp(sample, exponent), range(14), F64)
    np.testing.assert_allclose(there.r2, here.r2, rtol=1e-9)
    assert there.rms_increment == pytest.approx(math.ldexp(here.rms_increment, exponent))


def test_movement_of_subnormal_numbers_does_not_underflow():
    sample = np.zeros((5, 3))
    sample[:, 0] = [0.0, 1e-315, 1e-315, 2e-315, 0.0]
    result = simulate_null(sample, range(5), F64)
    assert result.moved.any()
    assert np.isfinite(result.r2[result.moved]).all()


def test_unmoving_offset_of_large_weights_costs_no_precision():
    sample = 1.0 + 2.0**-40 * grid_walks(F64, sigma=1.0, magnitude=0.0, num_sampled=500)
    plain = simulate_null(grid_walks(F64, sigma=1.0, magnitude=0.0, num_sampled=500), range(14), F64)
    result = simulate_null(sample, range(14), F64)
    assert share_above(result.r2) == pytest.approx(share_above(plain.r2), abs=0.01)


# --- R² and the filters -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [range(14), (0, 10, 15, 100, 110, 400)])
def test_r2_is_that_of_scipy_and_numpy(steps):
    stats = pytest.importorskip("scipy.stats")
    sample = grid_walks(BF16, sigma=1e-4 / math.sqrt(steps[-1] / 13), steps=steps)
    paths, _ = simulated_walks(sample, steps, BF16, num_paths=300)
    result = simulate_null(sample, steps, BF16, num_paths=300)
    assert result.moved.sum() > 250
    for path, r2, moved in zip(paths.T, result.r2, result.moved, strict=True):
        assert moved == (np.unique(path).size > 1)
        if not moved:
            assert np.isnan(r2)
            continue
        assert r2 == pytest.approx(np.corrcoef(steps, path)[0, 1] ** 2, abs=1e-9)
        assert r2 == pytest.approx(stats.linregress(steps, path).rvalue ** 2, abs=1e-9)


def test_paper_filter_is_range_and_distinct_values():
    sample = grid_walks(BF16, sigma=3e-5)
    paths, _ = simulated_walks(sample, range(14), BF16, num_paths=2048)
    result = simulate_null(sample, range(14), BF16, num_paths=2048)
    expected = [
        np.ptp(path) > PAPER_MIN_RANGE and np.unique(path).size >= PAPER_MIN_DISTINCT for path in paths.T
    ]
    np.testing.assert_array_equal(result.paper, expected)
    assert 0 < result.paper.sum() < result.moved.sum()


def test_a_path_that_changes_the_sign_of_zero_moved_and_has_no_r2():
    smallest = float(ml_dtypes.finfo(BF16.numpy).smallest_subnormal)
    sample = np.zeros((6, 50))
    sample[3, 0] = smallest
    result = simulate_null(sample, range(6), BF16, num_paths=4000)
    only_sign = result.moved & np.isnan(result.r2)
    assert only_sign.any()
    assert not result.paper[only_sign].any()


def test_two_steps_are_always_a_straight_line():
    result = simulate_null(grid_walks(BF16, sigma=3e-5, steps=(0, 10)), (0, 10), BF16)
    assert 0 < result.moved.sum() < result.moved.size
    np.testing.assert_allclose(result.r2[result.moved], 1.0, rtol=1e-12)
    assert np.isnan(result.r2[~result.moved]).all()


# --- rounding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.zarr)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_grid_rounding_is_the_cast_of_ml_dtypes(dtype, bits):
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.array(bits, np.uint32).view(np.float32).astype(np.float64)
        cast = values.astype(np.float32).astype(dtype.numpy).astype(np.float64)
    largest = float(ml_dtypes.finfo(dtype.numpy).max)
    inside = np.abs(values) <= largest  # False for NaN
    rounded = null._Grid.of(dtype).round(values[inside])
    np.testing.assert_array_equal(rounded.view(np.uint64), cast[inside].view(np.uint64))


@pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.zarr)
def test_grid_rounding_leaves_every_value_and_sends_ties_to_even(dtype):
    if dtype.itemsize == 4:
        codes = np.random.default_rng(0).integers(0, 0x7F80_0000, 10_000).astype(np.uint32)
    else:
        codes = np.arange(2 ** (8 * dtype.itemsize - 1), dtype=dtype.bits)
    with np.errstate(over="ignore", invalid="ignore"):
        values = codes.view(dtype.numpy).astype(np.float64)
        above = (codes + 1).astype(dtype.bits).view(dtype.numpy).astype(np.float64)
    finite = np.isfinite(above) & np.isfinite(values) & (above > values)
    values, above, even = values[finite], above[finite], (codes[finite] & 1) == 0
    grid = null._Grid.of(dtype)
    middle = (values + above) / 2
    np.testing.assert_array_equal(grid.round(values), values)
    np.testing.assert_array_equal(grid.round(-values).view(np.uint64), (-values).view(np.uint64))
    np.testing.assert_array_equal(grid.round(middle), np.where(even, values, above))
    # A cast by way of float32 would see the tie here and not what lies beside it.
    np.testing.assert_array_equal(grid.round(np.nextafter(middle, np.inf)), above)
    np.testing.assert_array_equal(grid.round(np.nextafter(middle, -np.inf)), values)
    # The cell of a value ends where rounding leaves it, upwards from the value and downwards from the next.
    np.testing.assert_array_equal(grid.cell(values)[0], middle - values)
    np.testing.assert_array_equal(grid.cell(above)[1], above - middle)
    np.testing.assert_array_equal(grid.cell(-above)[0], above - middle)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.zarr)
def test_paths_start_at_sampled_values_and_stay_on_the_grid(dtype):
    sample = grid_walks(dtype, sigma=0.05, magnitude=1.0)
    paths, _ = simulated_walks(sample, range(14), dtype, num_paths=500)
    assert np.isin(paths[0], sample[0]).all()
    np.testing.assert_array_equal(paths.astype(dtype.numpy).astype(np.float64), paths)


def test_movement_beyond_the_range_of_the_dtype_saturates():
    dtype = from_safetensors("F8_E4M3")
    sample = np.tile([[448.0], [-448.0]], (3, 20))
    result = simulate_null(sample, range(6), dtype, num_paths=100)
    assert np.isfinite(result.r2[result.moved]).all()


def test_bf16_null_approaches_the_unrounded_one_when_steps_span_many_ulp():
    exact = simulate_null(grid_walks(F64, sigma=1e-3), range(14), F64, num_paths=20_000)
    rounded = simulate_null(grid_walks(BF16, sigma=1e-3), range(14), BF16, num_paths=20_000)
    assert rounded.moved.mean() > 0.999
    assert share_above(rounded.r2) == pytest.approx(share_above(exact.r2), abs=0.006)


def test_rounding_and_the_filters_move_the_share_of_linear_walks_both_ways():
    num_paths = 40_000
    staircase = simulate_null(grid_walks(BF16, sigma=3e-6), range(14), BF16, num_paths=num_paths)
    assert 0.2 < staircase.moved.mean() < 0.5
    assert share_above(staircase.r2[staircase.moved]) < 0.14

    filtered = simulate_null(
        grid_walks(BF16, sigma=1e-5, magnitude=0.005), range(14), BF16, num_paths=num_paths
    )
    assert filtered.paper.sum() > 100
    assert share_above(filtered.r2[filtered.paper]) > 0.9
    assert share_above(filtered.r2[filtered.moved]) < 0.25


# --- calibration --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1e-5, 3e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=lambda dtype: dtype.zarr)
def test_rounded_walks_move_as_much_as_the_sample(dtype, sigma):
    sample = grid_walks(dtype, sigma=sigma)
    paths, _ = simulated_walks(sample, range(14), dtype, num_paths=2048)
    observed = np.mean(np.diff(sample, axis=0) ** 2)
    assert np.mean(np.diff(paths, axis=0) ** 2) == pytest.approx(observed, rel=0.002)


@pytest.mark.parametrize(
    ("sigma", "tolerance"),
    [(1e-3, 0.02), (1e-4, 0.03), (3e-5, 0.1), (1e-5, 0.3)],
    ids=lambda value: f"{value:g}",
)
def test_sigma_of_a_rounded_walk_is_recovered(sigma, tolerance):
    result = simulate_null(grid_walks(BF16, sigma=sigma), range(14), BF16)
    assert result.rms_increment == pytest.approx(sigma, rel=tolerance)
    assert result.frozen_share == 0.0


@pytest.mark.parametrize("ratio", [0.03, 0.3, 1.0, 5.0])
def test_rounding_inflates_increments_as_theory_says(ratio):
    # On an even grid with a uniform phase, an increment of k + r units in the last place becomes k or k + 1
    # of them; the Fourier series of r (1 − r) gives the mean square for Gaussian increments.
    order = np.arange(1, 400)
    inflated = ratio**2 + 1 / 6 - (np.exp(-2 * (np.pi * order * ratio) ** 2) / order**2).sum() / np.pi**2
    ulp = 2.0**-7
    first = np.full(2, 1.5)  # walks of 3 steps stay far from 1 and 2
    sample = np.array([first, first + ulp, first, first + ulp])
    walks = null._Walks(
        sample[0],
        np.array([True, True]),
        np.ones(3),
        ulp,
        null._Grid.of(BF16),
        200_000,
        np.random.default_rng(0),
    )
    mean_square = walks.squares(math.log(ratio * ulp)).mean() / 3
    assert mean_square == pytest.approx(inflated, rel=0.03)


def test_variance_grows_with_the_distance_of_steps():
    steps = (0, 1, 5, 25, 125)
    sample = grid_walks(F64, sigma=1e-3, steps=steps)
    paths, sigma = simulated_walks(sample, steps, F64, num_paths=40_000)
    per_step = np.diff(paths, axis=0).var(axis=1) / np.diff(steps)
    np.testing.assert_allclose(per_step, sigma**2, rtol=0.03)
    assert sigma == pytest.approx(1e-3, rel=0.03)


def test_share_of_moving_paths_is_that_of_a_rounded_walk():
    sample = grid_walks(BF16, sigma=1e-5)
    result = simulate_null(sample, range(14), BF16)
    observed = (sample != sample[0]).any(axis=0).mean()
    assert 0.3 < observed < 0.8
    assert result.moved.mean() == pytest.approx(observed, abs=0.06)


@pytest.mark.parametrize("frozen", [0.5, 0.95])
@pytest.mark.parametrize("sigma", [3e-5, 1e-4, 1e-3])
def test_parameters_that_are_not_trained_do_not_dilute_the_step_size(sigma, frozen):
    sample = grid_walks(BF16, sigma=sigma, frozen=frozen)
    result = simulate_null(sample, range(14), BF16)
    observed = (sample != sample[0]).any(axis=0).mean()
    assert result.frozen_share == pytest.approx(frozen, abs=0.04)
    assert result.rms_increment == pytest.approx(sigma, rel=0.25)
    assert result.moved.mean() == pytest.approx(observed, abs=0.05)
    assert np.isnan(result.r2[~result.moved]).all()


def test_walks_start_where_parameters_moved_if_the_others_are_frozen():
    moving = grid_walks(BF16, sigma=1e-2, magnitude=1.0, num_sampled=500)
    padding = np.zeros((14, 1500))
    mixed = simulate_null(np.hstack([padding, moving]), range(14), BF16, num_paths=8192)
    assert mixed.frozen_share == pytest.approx(0.75, abs=0.02)
    assert mixed.rms_increment == pytest.approx(1e-2, rel=0.05)


@settings(deadline=None, max_examples=25)
@given(drift=st.floats(1e-7, 1e-3), dtype=st.sampled_from([BF16, F32]))
def test_straight_lines_of_one_slope_freeze_nothing(drift, dtype):
    rng = np.random.default_rng(0)
    lines = rng.normal(0, 0.02, 800) + drift * np.arange(14)[:, None] * rng.choice([-1, 1], 800)
    sample = lines.astype(dtype.numpy).astype(np.float64)
    result = simulate_null(sample, range(14), dtype, num_paths=512)
    assert result.frozen_share in (0.0, 1.0)
    assert (result.frozen_share == 1.0) == (sample == sample[0]).all()


# --- edges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 5])
def test_a_sample_that_does_not_move_has_a_null_that_does_not_move(num_steps):
    sample = np.tile(grid_walks(BF16, sigma=1e-4)[:1], (num_steps, 1))
    result = simulate_null(sample, range(num_steps), BF16, num_paths=100)
    assert result.r2.shape == result.moved.shape == result.paper.shape == (100,)
    assert np.isnan(result.r2).all()
    assert not result.moved.any()
    assert not result.paper.any()
    assert result.rms_increment == 0.0


def test_one_parameter_and_one_path_are_enough():
    sample = grid_walks(BF16, sigma=1e-3, num_sampled=1)
    result = simulate_null(sample, range(14), BF16, num_paths=1)
    assert result.r2.shape == (1,)


def test_the_same_seed_gives_the_same_paths():
    sample = grid_walks(BF16, sigma=3e-5)
    first, again, other = (simulate_null(sample, range(14), BF16, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.r2, again.r2)
    np.testing.assert_array_equal(first.moved, again.moved)
    np.testing.assert_array_equal(first.paper, again.paper)
    assert first.rms_increment == again.rms_increment
    assert not np.array_equal(first.r2, other.r2)


def test_the_sample_is_not_written_to_and_may_have_any_memory_order():
    sample = grid_walks(BF16, sigma=3e-5)
    before = sample.copy()
    sample.flags.writeable = False
    here = simulate_null(sample, range(14), BF16)
    there = simulate_null(np.asfortranarray(sample), range(14), BF16)
    np.testing.assert_array_equal(sample, before)
    np.testing.assert_allclose(here.r2, there.r2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_samples_are_refused_with_their_count(bad):
    sample = grid_walks(BF16, sigma=3e-5, num_sampled=10)
    sample[3, [2, 7]] = bad
    with pytest.raises(InputError, match="2 of 10 sampled parameters"):
        simulate_null(sample, range(14), BF16)


@pytest.mark.parametrize(
    ("sample", "steps", "dtype", "message"),
    [
        (np.zeros((3, 4)), (0, 1), BF16, r"shape \(3, 4\), expected \(2, num_sampled\)"),
        (np.zeros(3), (0, 1, 2), BF16, "shape"),
        (np.zeros((3, 0)), (0, 1, 2), BF16, "at least one parameter"),
        (np.zeros((3, 4)), (0, 2, 2), BF16, "ascend"),
        (np.zeros((0, 4)), (), BF16, "at least one step"),
        (np.full((2, 1), 0.1), (0, 1), BF16, "not bfloat16 values"),
        (np.full((2, 1), 1e305), (0, 1), F64, "1e\\+300"),
        (np.zeros((2, 1)), (0, 1), from_safetensors("I32"), "not a floating type"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(sample, steps, dtype, message):
    with pytest.raises(InputError, match=message):
        simulate_null(sample, steps, dtype)


def test_no_paths_are_refused():
    with pytest.raises(InputError, match="num_paths is 0"):
        simulate_null(np.zeros((2, 1)), (0, 1), BF16, num_paths=0)
