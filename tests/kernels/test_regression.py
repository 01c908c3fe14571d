"""The regression kernel against the float64 oracle: accuracy, invariance, and what it refuses to trust."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckptlin.dtypes import from_zarr
from ckptlin.kernels import oracle
from ckptlin.kernels.regression import COUNT, NUM_BINS, SUM, Abscissa, BlockRegression
from ckptlin.populations import PAPER_MIN_RANGE
from tests.strategies import FITTED, moving_weights, random_weights, training_steps

BF16, F16, F32, F64 = (from_zarr(name) for name in ("bfloat16", "float16", "float32", "float64"))
MAPS = ("r2", "slope", "intercept")
TOLERANCE = 1e-5
# What a map of float32 adds: half a unit in the last place, and half the smallest number.  In float64 it is a
# few such units of whatever cancels.
FLOAT32_ROUNDING, FLOAT32_SMALLEST, FLOAT32_LARGEST = 2.0**-24, 2.0**-150, float(np.finfo(np.float32).max)
FLOAT64_ROUNDING = 2.0**-50


def regress(weights, steps, *, cuts=(), maps=MAPS):
    """Fit as the operations do: carefully where the fast sums cannot be trusted."""
    dtype = next(d for d in FITTED if d.numpy == weights.dtype)
    bits = np.ascontiguousarray(weights).view(dtype.bits)

    def run(careful):
        regression = BlockRegression(dtype, Abscissa.of(steps), bits.shape[1], maps, careful=careful)
        if not cuts:
            return regression.fit(bits)
        for lo, hi in pairwise([0, *cuts, len(bits)]):
            regression.add(bits[lo:hi])
        return regression.finish()

    fit, trusted = run(False)
    if not trusted:
        fit, trusted = run(True)
    assert trusted
    return fit


def assert_same(one, other):
    """Equal to the last bit, sums of whole blocks included."""
    for name in (*MAPS, "counts", "sums", "histogram"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name, strict=True)


def assert_within(found, expected, allowed, what):
    worst = np.max(np.abs(found - expected) - allowed, initial=0.0)
    assert worst <= 0, f"{what} is off by {worst:.3g} more than allowed"


def assert_agrees(fit, expected, steps, dtype):
    """Hold maps, counts, sums and histogram of a block against the oracle's."""
    s = np.asarray(steps, np.float64)
    mean, scale = s.mean(), s.std()
    unit, smallest = (0.0, 0.0) if dtype is F64 else (FLOAT32_ROUNDING, FLOAT32_SMALLEST)
    cancelled = FLOAT64_ROUNDING * (np.abs(expected.first) + np.abs(expected.slope * mean))
    defined = ~np.isnan(expected.r2)
    np.testing.assert_array_equal(np.isnan(fit.r2), ~defined)
    assert_within(fit.r2[defined], expected.r2[defined], TOLERANCE, "R²")
    allowed = TOLERANCE * expected.deviation / scale + unit * np.abs(expected.slope) + smallest
    assert_within(fit.slope, expected.slope, allowed, "slope")
    allowed = TOLERANCE * expected.deviation * (1 + abs(mean) / scale)
    allowed += unit * np.abs(expected.intercept) + smallest + cancelled
    fits = np.abs(expected.intercept) < (np.inf if dtype is F64 else FLOAT32_LARGEST)
    assert_within(fit.intercept[fits], expected.intercept[fits], allowed[fits], "intercept")

    counts = expected.counts
    for name in ("params", "unchanged", "undefined", "paper"):
        assert fit.counts[getattr(COUNT, name)] == counts[name], name
    for row, (population, members) in enumerate((("moved", defined), ("paper", expected.paper))):
        r2 = expected.r2[members]
        for threshold, suffix in ((0.7, "above_7"), (0.9, "above_9")):
            found = fit.counts[getattr(COUNT, f"{population}_{suffix}")]
            assert (r2 > threshold + TOLERANCE).sum() <= found <= (r2 > threshold - TOLERANCE).sum()
        # A parameter within the tolerance of the edge of a bin may lie on either side.
        below = np.concatenate([[0], np.cumsum(fit.histogram[row])])
        edges = np.arange(1, NUM_BINS) / NUM_BINS
        ordered = np.sort(r2)
        assert (np.searchsorted(ordered, edges - TOLERANCE) <= below[1:-1]).all()
        assert (below[1:-1] <= np.searchsorted(ordered, edges + TOLERANCE)).all()
        assert below[-1] == members.sum()

    sums = expected.sums
    found = {name: fit.sums[getattr(SUM, name)] for name in sums}
    for name in ("update", "first", "rounding"):
        assert found[name] == pytest.approx(sums[name], rel=1e-12), name
    assert abs(found["r2_moved"] - sums["r2_moved"]) <= TOLERANCE * counts["params"]
    assert abs(found["r2_paper"] - sums["r2_paper"]) <= TOLERANCE * counts["params"]
    assert abs(found["variation"] - sums["variation"]) <= TOLERANCE * sums["variation"]
    assert abs(found["residual"] - sums["residual"]) <= 2 * TOLERANCE * sums["variation"]


# --- accuracy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
@settings(max_examples=200)
@given(data=st.data())
def test_any_trajectory_agrees_with_the_oracle(dtype, data):
    steps = data.draw(training_steps())
    weights = data.draw(moving_weights(dtype, len(steps)))
    cuts = data.draw(st.lists(st.integers(0, len(steps)), max_size=5).map(sorted))
    fit = regress(weights, steps, cuts=cuts)
    assert_agrees(fit, oracle.fit_block(weights, steps), steps, dtype)


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
@settings(max_examples=200)
@given(data=st.data())
def test_a_few_arbitrary_weights_agree_with_the_oracle(dtype, data):
    steps = data.draw(training_steps(max_steps=5))
    weights = data.draw(random_weights(dtype, len(steps)))
    assert_agrees(regress(weights, steps), oracle.fit_block(weights, steps), steps, dtype)


def outliers(num_steps, rows):
    rng = np.random.default_rng(1)
    at = np.zeros((num_steps, 1))
    at[[row for row in rows if row < num_steps]] = 1
    sizes = 10.0 ** np.repeat(np.arange(-2, 7), 30)
    return rng.normal(size=sizes.size) + at * sizes + 1e-3 * rng.normal(size=(num_steps, sizes.size))


def levels(num_steps, row):
    """Constant before a row and after it; then constant before and walking after."""
    rng = np.random.default_rng(2)
    late = np.arange(num_steps)[:, None] >= row
    level = rng.normal(size=100) + late * rng.normal(size=100) * 10.0 ** rng.uniform(-3, 3, 100)
    walk = rng.normal(size=100) + late * rng.normal(size=(num_steps, 100)).cumsum(axis=0)
    return np.concatenate([level, walk], axis=1)


HARD = {
    "first far off": lambda n: outliers(n, [0]),
    "first two far off": lambda n: outliers(n, [0, 1]),
    "first and third far off": lambda n: outliers(n, [0, 2]),
    "last far off": lambda n: outliers(n, [n - 1]),
    "first and last far off": lambda n: outliers(n, [0, n - 1]),
    "middle far off": lambda n: outliers(n, [n // 2]),
    "first alone": lambda n: levels(n, 1),
    "first group constant": lambda n: levels(n, 16),
    "all but the last group constant": lambda n: levels(n, n - 8),
    "alternating": lambda n: (-1.0) ** np.arange(n)[:, None] * np.random.default_rng(3).normal(size=(n, 200)),
    "growing": lambda n: np.exp(np.arange(n) / 3)[:, None] * np.random.default_rng(4).normal(size=(n, 200)),
}
SPACING = {
    "even": lambda n: np.arange(n) * 10,
    "far from 0": lambda n: 10**9 + np.arange(n),
    "base, then far": lambda n: np.r_[0, 10**9 + np.arange(n - 1)],
    "last far": lambda n: np.r_[np.arange(n - 1), 10**9],
    "growing": lambda n: np.cumsum(np.geomspace(1, 1e8, n).astype(np.int64)),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=lambda d: d.zarr)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_hard_trajectories_agree_with_the_oracle(case, dtype, scale):
    for num_steps in (3, 15, 16, 17, 33, 200):
        weights = (scale * HARD[case](num_steps)).clip(-3e38, 3e38).astype(dtype.numpy)
        for spacing in SPACING.values():
            steps = spacing(num_steps)
            assert_agrees(regress(weights, steps), oracle.fit_block(weights, steps), steps, dtype)


@pytest.mark.parametrize("dtype", [F32, F64], ids=lambda d: d.zarr)
def test_weights_that_move_by_their_last_bit_alone_agree_with_the_oracle(dtype):
    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.02, 500).astype(dtype.numpy).view(dtype.bits)
    weights = (first + rng.integers(0, 2, (40, 500)).astype(dtype.bits)).view(dtype.numpy)
    steps = np.arange(40) * 100
    assert_agrees(regress(weights, steps), oracle.fit_block(weights, steps), steps, dtype)


@settings(max_examples=100)
@given(steps=training_steps(), seed=st.integers(0, 1 << 32), scale=st.integers(-40, 40))
@example(steps=(0, 1), seed=0, scale=0)
def test_a_line_has_an_r2_of_1_and_its_own_slope_and_intercept(steps, seed, scale):
    rng = np.random.default_rng(seed)
    slope, intercept = rng.normal(size=(2, 20)) * 10.0**scale
    line = intercept + slope * np.asarray(steps, np.float64)[:, None]
    fit = regress(line, steps)
    size = np.abs(line).max(axis=0)
    moves = np.ptp(line, axis=0) > 1e-6 * size  # the others are mostly float64 rounding
    np.testing.assert_allclose(fit.r2[moves], 1.0, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fit.slope[moves], slope[moves], rtol=1e-5)
    deviation = line.std(axis=0)
    reach = 1 + abs(np.mean(steps)) / np.std(steps)
    assert (np.abs(fit.intercept - intercept)[moves] <= (1e-5 * deviation * reach)[moves]).all()


# --- invariance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
@settings(max_examples=100)
@given(data=st.data())
def test_how_rows_are_grouped_makes_no_difference_in_the_last_bit(dtype, data):
    steps = data.draw(training_steps(max_steps=70))
    weights = data.draw(moving_weights(dtype, len(steps)))
    cuts = data.draw(st.lists(st.integers(0, len(steps)), min_size=1, max_size=12).map(sorted))
    assert_same(regress(weights, steps, cuts=cuts), regress(weights, steps))
    assert_same(regress(weights, steps, cuts=range(1, len(steps))), regress(weights, steps))


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
def test_a_parameter_s_figures_do_not_depend_on_its_neighbours(dtype):
    rng = np.random.default_rng(0)
    weights = (0.02 * rng.normal(size=(19, 3000)).cumsum(axis=0)).astype(dtype.numpy)
    steps = np.arange(19)
    whole = regress(weights, steps)
    cuts = [0, 1, 3, 1026, 1027, 2055, 3000]
    parts = [regress(weights[:, lo:hi], steps) for lo, hi in pairwise(cuts)]
    for name in MAPS:
        np.testing.assert_array_equal(
            np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)
        )
    for name in ("counts", "histogram"):
        np.testing.assert_array_equal(sum(getattr(part, name) for part in parts), getattr(whole, name))
    np.testing.assert_allclose(sum(part.sums for part in parts), whole.sums, rtol=1e-12)


def test_only_the_maps_that_were_asked_for_are_kept():
    weights = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    fit = regress(weights, range(5), maps=("slope",))
    assert fit.r2 is None
    assert fit.intercept is None
    np.testing.assert_array_equal(fit.slope, regress(weights, range(5)).slope)


# --- populations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
def test_unchanged_is_decided_on_bits_and_flips_of_the_sign_of_zero_are_undefined(dtype):
    weights = np.zeros((6, 5), dtype.numpy)
    weights[:, 0] = 0.0
    weights[:, 1] = [0.0, -0.0, 0.0, 0.0, -0.0, 0.0]
    weights[:, 2] = -0.0
    weights[:, 3] = [1, 1, 1, 1, 1, np.nextafter(dtype.numpy.type(1), dtype.numpy.type(2))]
    weights[:, 4] = 3
    regression = BlockRegression(dtype, Abscissa.of(range(6)), 5, MAPS)
    fit, trusted = regression.fit(weights.view(dtype.bits))
    assert trusted  # nothing that a second look could improve
    assert fit.counts[COUNT.unchanged] == 3
    assert fit.counts[COUNT.undefined] == 1
    np.testing.assert_array_equal(np.isnan(fit.r2), [True, True, True, False, True])
    np.testing.assert_array_equal(fit.slope[[0, 1, 2, 4]], 0)
    np.testing.assert_array_equal(fit.intercept[[0, 1, 2, 4]], [0, 0, 0, 3])


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
def test_the_paper_s_population_is_what_numpy_counts(dtype):
    rng = np.random.default_rng(0)
    # Grids from far below the paper's range to far above it, with few values and many.
    unit = 10.0 ** rng.uniform(-6, -3, 4000)
    weights = (rng.normal(0, 0.02, 4000) + unit * rng.integers(-3, 4, (14, 4000))).astype(dtype.numpy)
    weights[:, :500] = weights[:1, :500]
    weights[rng.integers(0, 14, 200), np.arange(500, 700)] = -0.0
    weights[rng.integers(0, 14, 200), np.arange(500, 700)] = 0.0
    values = weights.astype(np.float64)
    expected = sum(
        column.max() - column.min() > PAPER_MIN_RANGE and np.unique(column).size >= 4 for column in values.T
    )
    assert 500 < expected < 3500
    fit = regress(weights, range(14))
    assert fit.counts[COUNT.paper] == expected
    assert fit.histogram[1].sum() == expected


@pytest.mark.parametrize("num_distinct", [1, 2, 3, 4, 5, 14])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=lambda d: d.zarr)
def test_four_distinct_values_in_any_order_make_the_paper_s_population(num_distinct, dtype):
    rng = np.random.default_rng(num_distinct)
    order = np.stack([rng.permutation(np.resize(np.arange(num_distinct), 14)) for _ in range(300)], axis=1)
    weights = (1.0 + order).astype(dtype.numpy)
    fit = regress(weights, range(14), cuts=(5, 6))
    assert fit.counts[COUNT.paper] == (300 if num_distinct >= 4 else 0)
    assert fit.counts[COUNT.unchanged] == (300 if num_distinct == 1 else 0)


# --- trust --------------------------------------------------------------------------------------------


def is_trusted(weights, dtype, *, careful=False):
    regression = BlockRegression(dtype, Abscissa.of(range(len(weights))), weights.shape[1], careful=careful)
    return regression.fit(np.ascontiguousarray(weights).view(dtype.bits))[1]


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("num_steps", [2, 5, 16, 40])
def test_nan_and_infinity_are_never_trusted(dtype, value, careful, num_steps):
    rng = np.random.default_rng(0)
    for row in [slice(None), *range(num_steps)]:
        weights = rng.normal(0, 0.02, (num_steps, 3)).astype(dtype.numpy)
        assert is_trusted(weights, dtype, careful=careful)
        weights[row, 1] = value
        assert not is_trusted(weights, dtype, careful=careful)


def test_nan_with_changing_bits_is_not_trusted():
    bits = np.full((4, 1), 0x7FC00000, np.uint32) + np.arange(4, dtype=np.uint32)[:, None]
    assert not is_trusted(bits.view(np.float32), F32)


@pytest.mark.parametrize("scale", [1e-14, 1e-30, 1e-44, 1e17, 1e30])
def test_weights_whose_squares_leave_float32_are_done_again_carefully(scale):
    weights = (scale * np.random.default_rng(0).normal(size=(20, 9))).astype(np.float32)
    assert not is_trusted(weights, F32)
    assert is_trusted(weights, F32, careful=True)


def test_float64_weights_beyond_any_model_s_are_not_trusted_or_counted_as_undefined():
    weights = np.random.default_rng(0).normal(size=(20, 9))
    for careful in (False, True):
        assert is_trusted(1e-100 * weights, F64, careful=careful)
        assert is_trusted(1e100 * weights, F64, careful=careful)
        assert not is_trusted(1e200 * weights, F64, careful=careful)
    fit = regress(1e-200 * weights, range(20))
    assert fit.counts[COUNT.undefined] == 9
    assert np.isnan(fit.r2).all()


def test_the_memory_between_groups_is_what_is_stated():
    num_params = 1 << 16
    for dtype in FITTED:
        regression = BlockRegression(dtype, Abscissa.of(range(18)), num_params, careful=True)
        for _ in range(2):
            regression.add(np.zeros((9, num_params), dtype.bits))
        held = [*regression._state, regression._held]
        assert sum(array.nbytes for array in held) <= num_params * BlockRegression.state_bytes(dtype)


@pytest.mark.parametrize(
    "steps",
    [(0, 1), (5, 10**9), (10**9, 10**9 + 1, 10**9 + 5), (10**15, 10**15 + 1, 10**15 + 2), range(0, 5000, 25)],
)
def test_the_abscissa_is_centred_and_scaled_at_any_step_number(steps):
    abscissa = Abscissa.of(steps)
    exact = np.array([s - steps[0] for s in steps], np.float64)
    np.testing.assert_allclose(abscissa.x, (exact - exact.mean()) / exact.std(), rtol=1e-7, atol=1e-7)
    assert abscissa.scale == pytest.approx(exact.std())
    assert abscissa.mean == pytest.approx(steps[0] + exact.mean(), rel=1e-15)
