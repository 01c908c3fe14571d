import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import SelectionError
from ckptlin.naming import decode_name, encode_name, is_buffer, layer_index, matches, module_kind, select
from tests.strategies import tensor_names

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.input_layernorm.weight",
    "model.layers.10.mlp.up_proj.weight",
    "model.norm.weight",
]


@given(tensor_names())
def test_a_name_comes_back(name):
    assert decode_name(encode_name(name)) == name


@given(tensor_names(), tensor_names())
def test_different_names_have_different_paths(first, second):
    assert (encode_name(first) == encode_name(second)) == (first == second)


@given(tensor_names())
def test_a_path_component_is_harmless(name):
    """To file systems, to zarr (which reserves ``__`` and its own document), and to the store's own arrays."""
    encoded = encode_name(name)
    assert encoded not in ("", ".", "..", "zarr.json", "step")
    assert not encoded.startswith((".", "__"))
    assert not any(c in "/\\" or ord(c) < 32 or ord(c) == 127 for c in encoded)
    assert len(encoded.encode()) <= 255


@given(tensor_names())
def test_a_path_component_can_be_a_directory(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("names")
    (root / encode_name(name)).mkdir()
    assert os.listdir(root) == [encode_name(name)]


@given(st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_]|\.|-)*", fullmatch=True))
def test_the_names_of_common_models_stay_as_they_are(name):
    if not name.startswith("__") and name not in ("step", "zarr.json"):
        assert encode_name(name) == name


def test_encoded_names_are_fixed_for_ever():
    """They are paths in stores that exist."""
    for name, encoded in {
        "": "%",
        "%": "%25",
        "step": "%73%74%65%70",
        "zarr.json": "zarr%2Ejson",
        ".": "%2E",
        "..": "%2E.",
        ".hidden": "%2Ehidden",
        "__init": "%5F%5Finit",
        "_": "_",
        "a/b\\c": "a%2Fb%5Cc",
        "tab\t": "tab%09",
        "重み": "重み",
    }.items():
        assert encode_name(name) == encoded


def test_a_name_longer_than_a_file_name_is_refused():
    assert encode_name("x" * 255) == "x" * 255
    for name in ("x" * 256, "/" * 86, "é" * 128):
        with pytest.raises(SelectionError, match=r"is too long for a file name \(255 bytes\)"):
            encode_name(name)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("model.layers.12.mlp.up_proj.weight", 12), ("transformer.h.3.attn.c_attn.weight", 3),
     ("encoder.block.0.layer.1.w", 0), ("gpt_neox.layers.07.w", 7), ("blocks.5", 5),
     ("model.norm.weight", None), ("model.layers.norm.weight", None), ("sublayers.3.w", None)],
)  # fmt: skip
def test_the_layer_is_read_from_the_name(name, layer):
    assert layer_index(name) == layer


@pytest.mark.parametrize(
    ("name", "kind"),
    [("model.layers.12.self_attn.q_proj.weight", "self_attn.q_proj"), ("model.norm.weight", "norm"),
     ("model.layers.0.self_attn.q_proj.bias", "self_attn.q_proj.bias"), ("lm_head.weight", "lm_head"),
     ("model.layers.3.mlp.experts.17.up_proj.weight", "mlp.experts.up_proj"),
     ("transformer.h.3.attn.c_attn.weight", "attn.c_attn"), ("layers.4", "layers.4")],
)  # fmt: skip
def test_the_module_kind_leaves_out_where_it_stands(name, kind):
    assert module_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "found"),
    [("model.rotary_emb.inv_freq", True), ("h.0.attn.bias", True), ("bn.running_mean", True),
     ("h.0.attn.c_attn.bias", False), ("model.layers.0.self_attn.q_proj.bias", False), ("inv_freqs", False)],
)  # fmt: skip
def test_buffers_are_told_by_their_names(name, found):
    assert is_buffer(name) == found


def test_a_plain_pattern_matches_anywhere_and_a_glob_the_whole_name():
    assert [n for n in NAMES if matches(n, "norm")] == [NAMES[2], NAMES[4]]
    assert [n for n in NAMES if matches(n, "model.layers.1.*")] == [NAMES[2]]
    assert [n for n in NAMES if matches(n, "layers.?.*")] == []
    assert [n for n in NAMES if matches(n, "*.layers.[01].*")] == NAMES[1:3]


def test_selected_are_those_included_less_those_excluded():
    assert select(NAMES) == NAMES
    assert select(NAMES, ["layers"], ["norm", "mlp"]) == [NAMES[1]]
    assert select(NAMES, exclude=["layers"]) == [NAMES[0], NAMES[4]]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(option):
    with pytest.raises(SelectionError, match=f"--{option} 'nrom' matches none of the 5 tensors, such as"):
        select(NAMES, **{option: ["norm", "nrom"]})
    with pytest.raises(SelectionError, match="matches none of the 0 tensors"):
        select([], **{option: ["norm"]})
