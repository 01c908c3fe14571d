"""Which steps, which tensors, and in which groups rows are read."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import InputError, SelectionError
from ckptlin.ingest import ingest
from ckptlin.selection import fitted_tensors, row_groups, select_rows
from ckptlin.source import open_source

STEPS = (0, 10, 50, 100, 110, 200, 300)


@pytest.mark.parametrize(
    ("window", "selected"),
    [
        (None, STEPS),
        (":", STEPS),
        ("0:", STEPS),
        (":300", STEPS),
        ("50:110", (50, 100, 110)),
        ("11:199", (50, 100, 110)),
        ("-5:20", (0, 10)),
        ("0:300:100", (0, 100, 200, 300)),
        (":300:100", (0, 100, 200, 300)),
        ("10::100", (10, 110)),
        ("::50", (0, 50, 100, 200, 300)),
        ("5:300:5", (10, 50, 100, 110, 200, 300)),
        ("100", (100,)),
        ("300,0", (0, 300)),
        (" 0 , 10,10", (0, 10)),
    ],
)
def test_a_window_selects_rows(window, selected):
    assert tuple(STEPS[row] for row in select_rows(STEPS, window)) == selected


@pytest.mark.parametrize(
    "window", ["", "a", "0,", ",", "0:10:", "0:10:0", "0:10:-5", "0:1:2:3", "1.5", "0-10", "0:x", "0 10"]
)
def test_what_is_no_window_is_refused_with_an_example(window):
    with pytest.raises(InputError, match=r"is no window; write FIRST:LAST, FIRST:LAST:STRIDE or a list"):
        select_rows(STEPS, window)


@pytest.mark.parametrize("window", ["0,20", "20", "-10"])
def test_a_listed_step_that_does_not_exist_is_named(window):
    with pytest.raises(
        SelectionError, match=r"step (20|-10) of --steps .* does not exist among 7 steps, 0 to 300"
    ):
        select_rows(STEPS, window)


@pytest.mark.parametrize("window", ["11:49", "301:", ":-1", "200:100", "1:300:1000"])
def test_an_empty_window_is_refused(window):
    with pytest.raises(SelectionError, match="selects nothing among 7 steps, 0 to 300"):
        select_rows(STEPS, window)


@given(
    steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=30, unique=True).map(sorted),
    first=st.none() | st.integers(0, 10**9),
    last=st.none() | st.integers(0, 10**9),
    stride=st.none() | st.integers(1, 1000),
)
def test_a_window_holds_both_ends_and_multiples_of_its_stride(steps, first, last, stride):
    window = ":".join("" if end is None else str(end) for end in (first, last))
    window += "" if stride is None else f":{stride}"
    start = steps[0] if first is None else first
    wanted = [
        s for s in steps if s >= start and (last is None or s <= last) and (s - start) % (stride or 1) == 0
    ]
    if wanted:
        assert [steps[row] for row in select_rows(steps, window)] == wanted
    else:
        with pytest.raises(SelectionError):
            select_rows(steps, window)


MODEL = {
    "model.embed_tokens.weight": ((12, 4), ml_dtypes.bfloat16),
    "model.layers.0.mlp.up_proj.weight": ((4, 6), np.float32),
    "model.layers.0.self_attn.rotary_emb.inv_freq": ((4,), np.float32),
    "model.layers.1.mlp.up_proj.weight": ((4, 6), np.float16),
    "model.layers.1.norm.weight": ((4,), np.float64),
    "model.nothing": ((0, 4), np.float32),
    "model.counts": ((3,), np.int64),
    "model.mask": ((3,), np.bool_),
    "model.eighths": ((3,), ml_dtypes.float8_e4m3fn),
}
WEIGHTS = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.1.norm.weight",
]


class AnySource:
    """As much of a source as a selection looks at."""

    location = "run"

    def __init__(self, tensors, tied=()):
        self.tensors = tensors
        self.tied = dict(tied)


@pytest.fixture(scope="module")
def source():
    from ckptlin.dtypes import from_numpy
    from ckptlin.trajectory import TensorSpec

    return AnySource(
        {name: TensorSpec(name, from_numpy(np.dtype(dtype)), shape) for name, (shape, dtype) in MODEL.items()}
    )


def names(specs):
    return [spec.name for spec in specs]


def test_integers_booleans_float8_buffers_and_empty_tensors_are_not_fitted(source):
    assert names(fitted_tensors(source)) == WEIGHTS


def test_a_name_tied_to_another_tensor_is_not_counted_twice(source):
    tied = AnySource(source.tensors, {WEIGHTS[1]: WEIGHTS[0]})
    assert names(fitted_tensors(tied)) == [WEIGHTS[0], *WEIGHTS[2:]]


@pytest.mark.parametrize(
    ("include", "exclude", "selected"),
    [
        (["mlp"], [], [1, 2]),
        (["mlp", "embed"], [], [0, 1, 2]),
        ([], ["layers.1"], [0, 1]),
        (["layers"], ["norm"], [1, 2]),
        (["model.layers.*.weight"], [], [1, 2, 3]),
        (["model.layers.[01].mlp.*"], ["*.0.*"], [2]),
    ],
)
def test_patterns_include_and_exclude(source, include, exclude, selected):
    assert names(fitted_tensors(source, include, exclude)) == [WEIGHTS[i] for i in selected]


@pytest.mark.parametrize(
    ("include", "exclude"), [(["mpl"], []), ([], ["mpl"]), ([""], []), (["counts"], []), (["mlp"], ["up_proj"])]
)
def test_a_pattern_without_a_match_or_a_selection_without_weights_is_refused(source, include, exclude):
    with pytest.raises(SelectionError):
        fitted_tensors(source, include, exclude)


def test_rows_of_a_store_are_grouped_by_its_chunks_and_those_of_a_run_by_sixteen(make_run, tmp_path):
    run = make_run(range(21), model={"w": ((2,), np.float32)})
    store = ingest(run, tmp_path / "store", num_workers=1).store
    assert store.record.chunk_steps == 12
    everything = list(range(21))
    assert row_groups(store, everything) == [everything[:12], everything[12:]]
    assert row_groups(store, [0, 11, 12, 20]) == [[0, 11], [12, 20]]
    with open_source(run)._run:
        assert row_groups(open_source(run), everything) == [everything[:16], everything[16:]]
        assert row_groups(open_source(run), [0, 11, 12, 20]) == [[0, 11, 12, 20]]
