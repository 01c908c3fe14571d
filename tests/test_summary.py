"""The figures of a fit: quantiles out of histograms, merging, and what stands for the null."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin import summary
from ckptlin.dtypes import from_zarr
from ckptlin.kernels import oracle, regression
from ckptlin.kernels.regression import COUNT, Abscissa, BlockRegression
from ckptlin.populations import POPULATIONS
from ckptlin.summary import FitSummary, R2Figures, Tally
from tests.strategies import moving_weights

BF16, F32 = from_zarr("bfloat16"), from_zarr("float32")
STEPS = tuple(range(0, 140, 10))
BIN = 1 / summary.NUM_BINS
NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.10.mlp.up_proj.weight",
    "model.layers.2.mlp.up_proj.weight",
    "model.norm.weight",
)


def tally_of(weights, dtype, steps=STEPS):
    fit, trusted = BlockRegression(dtype, Abscissa.of(steps), weights.shape[1]).fit(weights.view(dtype.bits))
    if not trusted:
        careful = BlockRegression(dtype, Abscissa.of(steps), weights.shape[1], careful=True)
        fit, trusted = careful.fit(weights.view(dtype.bits))
    assert trusted
    tally = Tally.zero()
    tally.counts += fit.counts
    tally.sums += fit.sums
    tally.histogram += fit.histogram
    return tally


def walks(num_params, dtype=BF16, seed=0, sigma=1e-3):
    rng = np.random.default_rng(seed)
    noise = sigma * rng.normal(size=(len(STEPS), num_params)).cumsum(axis=0)
    return (rng.normal(0, 0.02, num_params) + noise).astype(dtype.numpy)


def a_summary(sizes=(40, 7, 7, 8, 9, 10, 3)):
    weights = [walks(size, seed=i) for i, size in enumerate(sizes)]
    tallies = tuple(tally_of(w, BF16) for w in weights)
    return FitSummary(STEPS, NAMES, tallies), weights


def test_counts_and_sums_are_in_the_kernel_s_order():
    assert regression.COUNT._fields == summary.COUNTS
    assert regression.SUM._fields == summary.SUMS
    assert tuple(regression.COUNT) == tuple(range(len(summary.COUNTS)))
    assert tuple(regression.SUM) == tuple(range(len(summary.SUMS)))
    assert summary.NUM_BINS == regression.NUM_BINS
    assert POPULATIONS == ("moved", "paper")  # the rows of the histograms


def test_a_tally_takes_the_bytes_that_are_planned_for():
    tally = Tally.zero()
    assert sum(getattr(tally, field.name).nbytes for field in fields(tally)) == Tally.NUM_BYTES


# --- figures of R² ------------------------------------------------------------------------------------


def figures_of(r2):
    positions = np.minimum((r2 * summary.NUM_BINS).astype(int), summary.NUM_BINS - 1)
    histogram = np.bincount(positions, minlength=summary.NUM_BINS).astype(float)
    return R2Figures.of(histogram, (r2 > 0.7).sum(), (r2 > 0.9).sum(), r2.sum())


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=200))
def test_quantiles_lie_within_a_bin_of_those_of_the_values(values):
    r2 = np.array(values)
    figures = figures_of(r2)
    for q, found in ((0.25, figures.q25), (0.5, figures.median), (0.75, figures.q75)):
        # np.quantile's default interpolates over gaps between values, where no histogram can follow.
        assert found == pytest.approx(np.quantile(r2, q, method="inverted_cdf"), abs=BIN + 1e-12)
        assert 0 <= found <= 1
    assert figures.count == len(r2)
    assert figures.mean == pytest.approx(r2.mean())
    assert figures.above_7 == pytest.approx((r2 > 0.7).mean())
    assert figures.above_9 == pytest.approx((r2 > 0.9).mean())


@pytest.mark.parametrize("shape", [(0.5, 0.5), (1, 1), (8, 2)])
def test_quantiles_of_many_values_agree_with_numpy_s(shape):
    r2 = np.random.default_rng(0).beta(*shape, 100_000)
    figures = figures_of(r2)
    found = [figures.q25, figures.median, figures.q75]
    np.testing.assert_allclose(found, np.quantile(r2, [0.25, 0.5, 0.75]), atol=BIN, rtol=0)


def test_an_empty_population_has_no_figures():
    figures = R2Figures.of(np.zeros(summary.NUM_BINS), 0, 0, 0.0)
    assert figures == R2Figures(0.0, None, None, None, None, None, None)


def test_the_mean_of_the_null_comes_out_of_its_bins():
    r2 = np.random.default_rng(0).random(5000)
    histogram = np.bincount((r2 * summary.NUM_BINS).astype(int), minlength=summary.NUM_BINS) * 0.37
    figures = R2Figures.of(histogram, 0, 0, None)
    assert figures.mean == pytest.approx(r2.mean(), abs=BIN / 2)
    assert figures.median == pytest.approx(np.median(r2), abs=BIN)


# --- groups -------------------------------------------------------------------------------------------


@given(data=st.data())
def test_a_group_s_figures_are_the_oracle_s(data):
    weights = data.draw(moving_weights(BF16, len(STEPS), num_params=60))
    expected = oracle.fit_block(weights, STEPS)
    group = FitSummary(STEPS, ("w",), (tally_of(weights, BF16),)).model()
    defined = ~np.isnan(expected.r2)
    assert group.num_params == 60
    assert group.share_unchanged == pytest.approx(expected.unchanged.mean())
    for found, members in ((group.moved, defined), (group.paper, expected.paper)):
        assert found.count == members.sum()
        if members.any():
            assert found.mean == pytest.approx(expected.r2[members].mean(), abs=1e-5)
    assert group.update_norm == pytest.approx(np.linalg.norm(expected.last - expected.first))
    if np.any(expected.first):
        relative = np.linalg.norm(expected.last - expected.first) / np.linalg.norm(expected.first)
        assert group.relative_update == pytest.approx(relative)
    else:
        assert group.relative_update is None
    if defined.any():
        explained = 1 - expected.residual.sum() / expected.variation.sum()
        assert group.variance_explained == pytest.approx(explained, abs=3e-5)
    else:
        assert group.variance_explained is None
        assert group.rounding_share is None


def test_the_tally_of_two_parts_is_the_sum_of_their_tallies():
    weights = walks(3000)
    whole = tally_of(weights, BF16)
    for cut in (1, 1024, 1500):
        merged = tally_of(weights[:, :cut].copy(), BF16)
        merged.add(tally_of(weights[:, cut:].copy(), BF16))
        np.testing.assert_array_equal(merged.counts, whole.counts)
        np.testing.assert_array_equal(merged.histogram, whole.histogram)
        np.testing.assert_allclose(merged.sums, whole.sums, rtol=1e-12)


def test_the_model_is_the_merger_of_its_tensors_its_kinds_and_its_layers():
    fitted, weights = a_summary()
    model = fitted.model()
    together = tally_of(np.concatenate(weights, axis=1), BF16)
    assert model.num_tensors == len(NAMES)
    assert model.num_params == sum(w.shape[1] for w in weights) == together.counts[COUNT.params]
    assert model.moved.count == together.histogram[0].sum()
    assert model.moved.mean == pytest.approx(together.sums[0] / model.moved.count)
    assert [g.name for g in fitted.tensors()] == list(NAMES)
    assert [g.num_params for g in fitted.tensors()] == [w.shape[1] for w in weights]
    assert sum(g.num_params for g in fitted.kinds()) == model.num_params
    assert {g.name: (g.num_tensors, g.num_params) for g in fitted.kinds()} == {
        "embed_tokens": (1, 40),
        "mlp.up_proj": (4, 34),
        "self_attn.q_proj": (1, 7),
        "norm": (1, 3),
    }
    assert {g.name: (g.num_tensors, g.num_params) for g in fitted.layers()} == {
        "layer 0": (2, 14),
        "layer 1": (1, 8),
        "layer 2": (1, 10),
        "layer 10": (1, 9),
    }
    assert [g.name for g in fitted.layers()] == ["layer 0", "layer 1", "layer 2", "layer 10"]
    histogram, null = fitted.histogram()
    np.testing.assert_array_equal(histogram, together.histogram)
    assert not null.any()


def test_merging_changes_no_tally():
    fitted, _ = a_summary()
    before = [tally.counts.copy() for tally in fitted.tallies]
    fitted.to_dict()
    fitted.histogram()
    for tally, counts in zip(fitted.tallies, before, strict=True):
        np.testing.assert_array_equal(tally.counts, counts)


def test_the_grid_holds_medians_by_layer_and_kind():
    fitted, weights = a_summary()
    layers, kinds, medians = fitted.grid()
    assert layers == [0, 1, 2, 10]
    assert kinds == ["mlp.up_proj", "self_attn.q_proj"]
    for layer, kind, tensor in ((0, 0, 1), (0, 1, 2), (1, 0, 3), (3, 0, 4), (2, 0, 5)):
        expected = np.nanquantile(oracle.fit_block(weights[tensor], STEPS).r2, 0.5, method="inverted_cdf")
        assert medians[layer, kind] == pytest.approx(expected, abs=BIN)
    assert np.isnan(medians[1:, 1]).all()


def test_rows_for_a_table_are_flat_and_name_their_level():
    fitted, _ = a_summary()
    rows = fitted.to_rows()
    assert [row["level"] for row in rows] == ["model", *["layer"] * 4, *["kind"] * 4, *["tensor"] * 7]
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert not any(isinstance(value, dict) for row in rows for value in row.values())
    assert rows[0]["moved_median"] == fitted.model().moved.median
    as_dict = fitted.to_dict()
    assert as_dict["steps"] == list(STEPS)
    assert as_dict["model"]["moved"]["median"] == fitted.model().moved.median
    assert len(as_dict["tensors"]) == len(NAMES)


def test_each_tensor_s_walks_weigh_as_much_as_its_parameters():
    """Where the walks of a large tensor look linear and those of a small one do not, the large one counts."""
    tallies = []
    for num_params, position in ((9000, 950), (1000, 100)):
        tally = Tally.zero()
        tally.counts[COUNT.params] = num_params
        tally.null_counts[COUNT.params] = num_params
        tally.null_counts[COUNT.moved_above_7] = num_params if position > 700 else 0
        tally.null_histogram[0, position] = num_params
        tallies.append(tally)
    model = FitSummary(STEPS, ("large", "small"), tuple(tallies)).model()
    assert model.null_moved.count == 10_000
    assert model.null_moved.above_7 == pytest.approx(0.9)
    assert model.null_moved.mean == pytest.approx(0.9 * 0.9505 + 0.1 * 0.1005)
    assert model.null_moved.median == pytest.approx(0.951, abs=BIN)


# --- rounding -----------------------------------------------------------------------------------------


def rounding_share(dtype, *, drift, noise):
    """Weights of about 0.02 that drift over all steps by ``drift``, with noise at each."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, len(STEPS))[:, None]
    weights = rng.uniform(0.016, 0.03, 20_000) + drift * t + noise * rng.normal(size=(len(STEPS), 20_000))
    return FitSummary(STEPS, ("w",), (tally_of(weights.astype(dtype.numpy), dtype),)).model().rounding_share


def test_rounding_explains_the_residuals_of_a_slow_drift_in_bfloat16_but_not_in_float32():
    noise = 2e-6  # a sixtieth of bfloat16's unit in the last place, a thousand of float32's
    assert rounding_share(BF16, drift=1e-3, noise=noise) > 0.95
    assert rounding_share(F32, drift=1e-3, noise=noise) < 1e-3


def test_rounding_explains_nothing_of_large_moves():
    assert rounding_share(BF16, drift=1e-3, noise=0.01) < 1e-3
