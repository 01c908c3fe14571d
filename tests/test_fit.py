"""The fit of a store or a run: its figures against the oracle, however it is read; and what it refuses."""

import shutil
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin.checkpoints import discover
from ckptlin.checkpoints.run_trajectories import RunTrajectories
from ckptlin.dtypes import from_zarr
from ckptlin.errors import InputError, MemoryBudgetError, NonFiniteError, SelectionError
from ckptlin.fit import DEFAULT_MAPS, fit, parse_maps, plan_fit
from ckptlin.ingest import ingest
from ckptlin.kernels import oracle
from ckptlin.kernels.regression import COUNT
from ckptlin.memory import parse_bytes
from ckptlin.source import open_source
from ckptlin.store.layout import blocks_of, param_chunk_shape
from tests.runs import file_contents, save_checkpoint, weights_at

MODEL = {
    "model.embed_tokens.weight": ((50, 8), ml_dtypes.bfloat16),
    "model.layers.0.mlp.up_proj.weight": ((40, 6), np.float32),
    "model.layers.0.self_attn.rotary_emb.inv_freq": ((4,), np.float32),
    "model.layers.1.mlp.up_proj.weight": ((40, 6), np.float16),
    "model.layers.1.norm.weight": ((40,), np.float64),
    "model.scale": ((), np.float32),
    "model.nothing": ((0, 4), np.float32),
    "model.counts": ((3,), np.int64),
    "model.mask": ((3,), np.bool_),
}
FITTED = tuple(MODEL)[:2] + tuple(MODEL)[3:6]
UNEVEN = (0, 1, 5, 10, 11, 12, 50, 100, 200, 300, 301, 400, 500, 600, 700, 800, 900, 1000, 2000, 3000, 5000)
EXACT = {"r2": "float64", "slope": "float64", "intercept": "float64"}


def trajectory(steps, tensor):
    return np.stack([weights_at(step, {tensor: MODEL[tensor]})[tensor].reshape(-1) for step in steps])


def expected(steps, tensor):
    return oracle.fit_block(trajectory(steps, tensor), steps)


def read_map(store, tensor, name, fit_name="default"):
    parts = [store.read_map(fit_name, name, block) for block in store.blocks(tensor)]
    return np.concatenate(parts).astype(np.float64)


def assert_same_figures(one, other):
    assert one.names == other.names
    assert one.steps == other.steps
    for name, first, second in zip(one.names, one.tallies, other.tallies, strict=True):
        for part in ("counts", "sums", "histogram", "null_counts", "null_histogram"):
            np.testing.assert_array_equal(
                getattr(first, part), getattr(second, part), err_msg=f"{name} {part}", strict=True
            )


@pytest.fixture
def run(make_run):
    return make_run(UNEVEN, model=MODEL)


@pytest.fixture
def store(run, tmp_path):
    return ingest(run, tmp_path / "store", num_workers=1).store


# --- figures ------------------------------------------------------------------------------------------


def test_maps_and_counts_of_a_store_agree_with_the_oracle(store):
    result = fit(store, maps=EXACT)
    assert result.maps == EXACT
    assert sorted(result.summary.names) == sorted(FITTED)
    assert result.summary.steps == UNEVEN
    fitted = type(store)(store.path)
    mean, scale = np.mean(UNEVEN), np.std(UNEVEN)
    for tensor, tally in zip(result.summary.names, result.summary.tallies, strict=True):
        wanted = expected(UNEVEN, tensor)
        defined = ~np.isnan(wanted.r2)
        r2 = read_map(fitted, tensor, "r2")
        np.testing.assert_allclose(r2, wanted.r2, rtol=0, atol=1e-5)
        slope = read_map(fitted, tensor, "slope")
        assert (np.abs(slope - wanted.slope) <= 1e-5 * wanted.deviation / scale + 6e-8 * np.abs(slope)).all()
        intercept = read_map(fitted, tensor, "intercept")
        allowed = 1e-5 * wanted.deviation * (1 + mean / scale) + 6e-8 * np.abs(intercept)
        assert (np.abs(intercept - wanted.intercept) <= allowed).all()
        for name in ("params", "unchanged", "undefined", "paper"):
            assert tally.counts[getattr(COUNT, name)] == wanted.counts[name]
        assert tally.histogram[0].sum() == defined.sum()
        assert tally.sums[0] == pytest.approx(wanted.sums["r2_moved"], abs=1e-5 * r2.size)


def test_the_maps_that_are_kept_by_default_are_within_their_rounding(store):
    assert fit(store).maps == DEFAULT_MAPS
    fitted = type(store)(store.path)
    for tensor in FITTED:
        wanted = expected(UNEVEN, tensor)
        np.testing.assert_allclose(read_map(fitted, tensor, "r2"), wanted.r2, rtol=0, atol=2.5e-4 + 1e-5)
        slope = read_map(fitted, tensor, "slope")
        allowed = 2.0**-8 * np.abs(wanted.slope) + 1e-5 * wanted.deviation / np.std(UNEVEN)
        assert (np.abs(slope - wanted.slope) <= allowed).all()


@pytest.mark.parametrize("steps", [UNEVEN[:2], UNEVEN[:5], UNEVEN, tuple(range(0, 390, 10))], ids=len)
@pytest.mark.parametrize("window", [None, "1:300"])
def test_the_fit_of_a_store_is_that_of_the_run_to_the_last_bit(make_run, tmp_path, steps, window):
    run = make_run(steps, model=MODEL)
    if window is not None and sum(1 <= step <= 300 for step in steps) < 2:
        window = "0:1"
    # Appended to, so that chunks and groups of rows differ from those of the run.
    ingest([run / f"checkpoint-{step}" for step in steps[: len(steps) // 2 + 1]], tmp_path / "store")
    store = ingest(run, tmp_path / "store").store
    assert_same_figures(fit(open_source(run), steps=window).summary, fit(store, steps=window).summary)


@pytest.mark.parametrize("num_workers", [2, 5])
def test_the_number_of_workers_makes_no_difference(run, tmp_path, num_workers):
    results, files = [], []
    for workers in (1, num_workers):
        store = ingest(run, tmp_path / f"store-{workers}", num_workers=1).store
        results.append(fit(store, maps=EXACT, num_workers=workers).summary)
        contents = file_contents(store.path / "fits")
        files.append({name: data for name, data in contents.items() if not name.endswith("zarr.json")})
    assert_same_figures(*results)
    assert files[0] == files[1]


@settings(max_examples=15)
@given(data=st.data())
def test_how_tensors_are_cut_makes_no_difference(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "cut"
    if not root.exists():
        for step in UNEVEN:
            save_checkpoint(root / f"checkpoint-{step}", weights_at(step, MODEL))
    num_workers = data.draw(st.integers(1, 3))
    target = data.draw(st.integers(1, 60))

    def cut(spec):
        return blocks_of(spec, param_chunk_shape(spec.shape, target))

    whole = fit(open_source(root)).summary
    parts = fit(RunTrajectories(discover(root), partition=cut), num_workers=num_workers).summary
    for one, other in zip(whole.tallies, parts.tallies, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)
        np.testing.assert_array_equal(one.histogram, other.histogram)
        np.testing.assert_allclose(one.sums, other.sums, rtol=1e-12)


def test_hundreds_of_steps_are_streamed(make_run, tmp_path):
    model = {
        "model.layers.1.norm.weight": MODEL["model.layers.1.norm.weight"],
        "w": ((30,), ml_dtypes.bfloat16),
    }
    run = make_run(range(0, 2600, 10), model=model)
    store = ingest(run, tmp_path / "store").store
    result = fit(store, maps=EXACT)
    wanted = oracle.fit_block(np.stack([weights_at(s, model)["w"] for s in store.steps]), store.steps)
    np.testing.assert_allclose(read_map(type(store)(store.path), "w", "r2"), wanted.r2, rtol=0, atol=1e-5)
    assert_same_figures(result.summary, fit(open_source(run)).summary)


def test_packed_chunks_are_fitted_without_unpacking_whole_blocks(store, run, monkeypatch):
    expected = fit(open_source(run)).summary
    monkeypatch.setattr(type(store), "read_chunk", lambda *_: pytest.fail("a chunk was unpacked"))
    assert_same_figures(fit(store, keep=False).summary, expected)


def test_chunks_that_take_too_much_memory_together_are_fitted_one_by_one(store, run, monkeypatch):
    expected = fit(open_source(run)).summary
    monkeypatch.setattr("ckptlin.block_fit._CHUNK_OVERHEAD", -(1 << 40))
    monkeypatch.setattr("ckptlin.block_fit.BlockRegression.fit_packed", lambda *_: pytest.fail("all at once"))
    assert_same_figures(fit(store, keep=False).summary, expected)


def test_parameters_that_never_move_are_counted_and_have_no_r2(tmp_path):
    for step in range(5):
        weights = {"still": np.full((4,), 0.5, np.float32), "flips": np.array([0.0, 1.0], np.float32)}
        weights["flips"][0] *= (-1) ** step
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights)
    flips, still = fit(open_source(tmp_path / "run")).summary.tallies
    assert (still.counts[COUNT.unchanged], still.counts[COUNT.undefined]) == (4, 0)
    assert (flips.counts[COUNT.unchanged], flips.counts[COUNT.undefined]) == (1, 1)
    model = fit(open_source(tmp_path / "run")).summary.model()
    assert model.share_unchanged == 5 / 6
    assert model.moved.count == 0
    assert model.moved.median is None
    assert model.variance_explained is None
    assert model.null_moved.count == 0


# --- the null -----------------------------------------------------------------------------------------


def test_the_null_of_each_tensor_stands_for_all_its_parameters(run):
    summary = fit(open_source(run)).summary
    for tally in summary.tallies:
        num_params = tally.counts[COUNT.params]
        null = tally.null_counts
        assert null[COUNT.params] == num_params
        standing = null[COUNT.unchanged] + null[COUNT.undefined]
        assert standing + tally.null_histogram[0].sum() == pytest.approx(num_params)
        assert tally.null_histogram[1].sum() == pytest.approx(null[COUNT.paper])
        assert null[COUNT.moved_above_9] <= null[COUNT.moved_above_7] <= tally.null_histogram[0].sum()
        assert tally.null_histogram[0, 701:].sum() == pytest.approx(
            null[COUNT.moved_above_7], abs=num_params / 60
        )
    model = summary.model()
    walking = sum(tally.null_histogram[0].sum() for tally in summary.tallies)
    above = sum(tally.null_counts[COUNT.moved_above_7] for tally in summary.tallies)
    assert model.null_moved.count == pytest.approx(walking)
    assert model.null_moved.above_7 == pytest.approx(above / walking)


def test_random_walks_look_as_linear_as_their_null(tmp_path):
    rng = np.random.default_rng(0)
    path = rng.normal(0, 0.02, 4000) + rng.normal(0, 3e-4, (14, 4000)).cumsum(axis=0)
    for step, row in enumerate(path):
        weights = {"w": row.astype(ml_dtypes.bfloat16)}
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights)
    model = fit(open_source(tmp_path / "run")).summary.model()
    assert model.moved.above_7 == pytest.approx(model.null_moved.above_7, abs=0.05)
    assert model.paper.above_7 == pytest.approx(model.null_paper.above_7, abs=0.05)


def test_the_null_hangs_on_its_seed_alone(run):
    source = open_source(run)
    first = fit(source, seed=1).summary
    assert_same_figures(first, fit(source, seed=1, num_workers=1).summary)
    other = fit(source, seed=2).summary
    assert any(
        (a.null_histogram != b.null_histogram).any() for a, b in zip(first.tallies, other.tallies, strict=True)
    )
    for a, b in zip(first.tallies, other.tallies, strict=True):
        np.testing.assert_array_equal(a.histogram, b.histogram)


# --- selection ----------------------------------------------------------------------------------------


def test_patterns_choose_tensors_and_windows_choose_steps(store):
    result = fit(store, include=["layers"], exclude=["norm"], steps="0:500:100", num_workers=1)
    assert result.summary.names == (FITTED[1], FITTED[2])
    assert result.summary.steps == (0, 100, 200, 300, 400, 500)
    for tensor, tally in zip(result.summary.names, result.summary.tallies, strict=True):
        assert tally.sums[0] == pytest.approx(expected(result.summary.steps, tensor).sums["r2_moved"], abs=1e-3)
    with pytest.raises(SelectionError, match="matches none of"):
        fit(store, include=["layres"])


def test_a_tied_name_is_fitted_once(tmp_path):
    for step in range(4):
        weights = weights_at(step, {"model.embed_tokens.weight": MODEL["model.embed_tokens.weight"]})
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights, {"tie_word_embeddings": True})
    store = ingest(tmp_path / "run", tmp_path / "store").store
    assert fit(store).summary.names == ("model.embed_tokens.weight",)


def test_one_checkpoint_is_no_line(make_run, tmp_path, store):
    one = ingest(make_run([300], "one"), tmp_path / "one-store").store
    for source in (one, open_source(tmp_path / "one")):
        with pytest.raises(InputError, match=r"a fit needs at least 2 checkpoints, and .* has only step 300"):
            fit(source)
    with pytest.raises(InputError, match=r"has only one in --steps 0:0"):
        fit(store, steps="0:0")


# --- weights that are no numbers ----------------------------------------------------------------------


def spoil(run, step, tensor, index, value):
    weights = weights_at(step, MODEL)
    weights[tensor].reshape(-1)[index] = value
    shutil.rmtree(run / f"checkpoint-{step}")
    save_checkpoint(run / f"checkpoint-{step}", weights)


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("tensor", FITTED[:4])
@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "2 NaN"), (np.inf, "2 infinite"), (-np.inf, "2 infinite")]
)
def test_nan_and_infinity_are_refused_with_tensor_step_and_count(
    run, tmp_path, value, words, tensor, num_workers
):
    for step in (600, 2000):
        spoil(run, step, tensor, [3, 17], value)
    store = ingest(run, tmp_path / "store").store
    for source in (store, open_source(run)):
        with pytest.raises(NonFiniteError) as caught:
            fit(source, num_workers=num_workers)
        for part in (f"tensor `{tensor}`", f"has {words} weights at step 600;", "--steps", "--exclude"):
            assert part in str(caught.value)
        fit(source, steps="0:500", num_workers=num_workers)
        fit(source, exclude=[tensor], num_workers=num_workers)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_at_any_step_is_refused_though_it_never_changes(run, value):
    for step in UNEVEN:
        spoil(run, step, FITTED[0], 5, value)
    with pytest.raises(NonFiniteError, match=rf"tensor `{FITTED[0]}` .* has 1 .* weight at step 0;"):
        fit(open_source(run))


def test_nan_is_counted_over_all_blocks_of_the_tensor(run):
    spoil(run, 50, FITTED[0], [1, 150, 399], np.nan)
    source = RunTrajectories(discover(run), partition=lambda t: blocks_of(t, param_chunk_shape(t.shape, 80)))
    with pytest.raises(NonFiniteError, match="has 3 NaN weights at step 50;"):
        fit(source, num_workers=3)


def test_weights_whose_squares_overflow_are_refused(tmp_path):
    for step in range(3):
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", {"w": np.array([1e200 * (1 + step), 1.0])})
    with pytest.raises(NonFiniteError, match=r"tensor `w` .* squares are too large"):
        fit(open_source(tmp_path / "run"))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_weights_are_fitted_as_others_are(tmp_path, scale):
    for step in range(20):
        for name, factor in (("plain", 1.0), ("scaled", scale)):
            weights = {"w": (factor * weights_at(step, MODEL)[FITTED[1]]).astype(np.float32)}
            save_checkpoint(tmp_path / f"{name}/checkpoint-{step}", weights)
    plain, scaled = (fit(open_source(tmp_path / name)).summary.model() for name in ("plain", "scaled"))
    assert scaled.moved.count == plain.moved.count
    assert scaled.moved.mean == pytest.approx(plain.moved.mean, abs=1e-3)
    assert scaled.relative_update == pytest.approx(plain.relative_update, rel=1e-5)


# --- maps and plans -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "maps"),
    [
        ("none", {}),
        ("all", {"r2": "float16", "slope": "bfloat16", "intercept": "float32"}),
        ("r2", {"r2": "float16"}),
        (" intercept , slope:float64", {"intercept": "float32", "slope": "float64"}),
    ],
)
def test_maps_are_read(text, maps):
    assert parse_maps(text) == maps


@pytest.mark.parametrize("text", ["", "r3", "r2,", "r2:float8", "slope:int64", "all,r2", "R2"])
def test_maps_that_are_not_known_are_refused(text):
    with pytest.raises(
        InputError, match=r"--maps .* is not known; give all, none, or some of r2, slope, intercept"
    ):
        parse_maps(text)


def test_what_makes_no_sense_is_refused_before_anything_is_read(run, store):
    with pytest.raises(InputError, match=r"maps are kept in a store, and .* is a run"):
        fit(open_source(run), maps={"r2": "float16"})
    with pytest.raises(InputError, match="--workers must be at least 1, not 0"):
        fit(store, num_workers=0)
    with pytest.raises(InputError, match="--name"):
        fit(store, name="")
    with pytest.raises(SelectionError):
        fit(store, steps="7")


class Seen:
    """What progress was told."""

    def __init__(self):
        self.announced, self.done = {}, {}

    @contextmanager
    def phase(self, title, num_bytes):
        self.announced[title], self.done[title] = num_bytes, []
        yield self.done[title].append

    def note(self, message):
        pytest.fail(message)


@pytest.mark.parametrize("maps", [{}, DEFAULT_MAPS, EXACT])
def test_a_plan_tells_what_the_fit_then_reads(store, maps):
    before = file_contents(store.path)
    plan = plan_fit(store, maps=maps, steps="0:1000", num_workers=3)
    num_steps = sum(step <= 1000 for step in UNEVEN)
    sizes = {tensor: trajectory((0,), tensor) for tensor in FITTED}
    assert plan.bytes_in == num_steps * sum(row.nbytes for row in sizes.values())
    per_param = sum(from_zarr(dtype).itemsize for dtype in maps.values())
    assert plan.bytes_out == per_param * sum(row.size for row in sizes.values())
    assert plan.memory.num_workers == 3
    as_dict = plan.to_dict()
    assert as_dict["tensors"] == len(FITTED)
    assert as_dict["params"] == sum(row.size for row in sizes.values())
    assert as_dict["steps"] == [step for step in UNEVEN if step <= 1000]
    assert file_contents(store.path) == before

    seen = Seen()
    result = fit(store, maps=maps, steps="0:1000", progress=seen)
    assert result.bytes_in == plan.bytes_in
    assert sum(seen.done["fit"]) == seen.announced["fit"] == plan.bytes_in
    assert {title: sum(done) for title, done in seen.done.items()} == seen.announced


def test_a_budget_that_is_too_small_is_refused_with_one_that_would_do(store):
    with pytest.raises(MemoryBudgetError, match="give --memory") as caught:
        fit(store, memory_bytes=10**6)
    enough = parse_bytes(str(caught.value).split("--memory ")[1].split()[0])
    assert plan_fit(store, memory_bytes=enough).memory.num_workers == 1
    assert len(fit(store, memory_bytes=enough).summary.names) == len(FITTED)
