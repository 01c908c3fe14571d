"""What transformers makes of an extrapolated checkpoint."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ckptlin.export import export
from ckptlin.extrapolate import extrapolate
from ckptlin.ingest import ingest
from ckptlin.source import open_source
from ckptlin.store.store import TrajectoryStore
from tests.runs import file_contents
from tests.tiny_models import CHAT_TEMPLATE, load_weights, save_model_run

KINDS = {
    "qwen2 tied": ("qwen2", True, {}),
    "qwen2 untied sharded": ("qwen2", False, {"max_shard_size": "2KB"}),
    "llama tied sharded": ("llama", True, {"max_shard_size": "2KB"}),
    "llama untied": ("llama", False, {}),
}


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    architecture, is_tied, options = KINDS[request.param]
    root = tmp_path_factory.mktemp("models") / "run"
    return save_model_run(root, architecture, is_tied=is_tied, **options)


@pytest.fixture(scope="module")
def store(run):
    """A store whose run is gone."""
    copy = run.with_name("gone")
    shutil.copytree(run, copy)
    ingest(copy, run.with_name("store"))
    shutil.rmtree(copy)
    return TrajectoryStore(run.with_name("store"))


def assert_loads(out, dtype):
    """Load a checkpoint, compare it with what its files hold, and let it speak."""
    model, report = AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == dtype
    written = load_weights(out)
    state = {name: values for name, values in model.state_dict().items() if name in written}
    assert state.keys() == written.keys()
    for name, values in state.items():
        assert torch.equal(values.double(), torch.from_numpy(written[name].astype(np.float64))), name
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    is_tied = AutoConfig.from_pretrained(out).tie_word_embeddings
    assert (head.data_ptr() == embedding.data_ptr()) == is_tied
    assert ("lm_head.weight" in written) != is_tied
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokens = tokenizer("abc", return_tensors="pt")
    assert tokens["input_ids"].tolist() == [[2, 3, 4]]
    generated = model.generate(**tokens, do_sample=False, min_new_tokens=5)
    assert generated.shape == (1, 8)
    return model, tokenizer


@pytest.mark.parametrize(("source_kind", "options"), [("run", {}), ("store", {"max_shard_bytes": 3000})])
def test_an_extrapolated_checkpoint_loads_with_its_tokenizer_and_generates(
    run, store, tmp_path, source_kind, options
):
    source = store if source_kind == "store" else open_source(run)
    extrapolate(source, 600, tmp_path / "out", **options)
    _, tokenizer = assert_loads(tmp_path / "out", torch.bfloat16)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert GenerationConfig.from_pretrained(tmp_path / "out").max_new_tokens == 5


def test_the_weights_are_those_of_the_line(store, tmp_path):
    extrapolate(store, 600, tmp_path / "out", method="two-point", dtype="float32", keep=())
    model, _ = assert_loads(tmp_path / "out", torch.float32)
    export(store, 0, tmp_path / "first")
    export(store, 300, tmp_path / "last")
    first, last = load_weights(tmp_path / "first"), load_weights(tmp_path / "last")
    state = model.state_dict()
    for name in first:
        w_0, w_1 = first[name].astype(np.float64), last[name].astype(np.float64)
        np.testing.assert_array_equal(state[name].numpy(), (w_0 + 2.0 * (w_1 - w_0)).astype(np.float32), name)


def test_float32_stands_in_the_configuration_of_a_bfloat16_run(run, tmp_path):
    extrapolate(open_source(run), 600, tmp_path / "out", method="ols", dtype="float32")
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.float32
    assert all(values.dtype == np.float32 for values in load_weights(tmp_path / "out").values())
    assert all(values.dtype == ml_dtypes.bfloat16 for values in load_weights(run / "checkpoint-300").values())


def test_everything_beside_the_weights_is_carried_over(run, store, tmp_path):
    extrapolate(store, 600, tmp_path / "out", method="ols")
    original, found = file_contents(run / "checkpoint-300"), file_contents(tmp_path / "out")
    beside = {name for name in original if not name.endswith(".safetensors")} - {"model.safetensors.index.json"}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= beside
    assert {name: found[name] for name in beside} == {name: original[name] for name in beside}
    assert {name for name in found if name.endswith(".safetensors")} == {
        name for name in original if name.endswith(".safetensors")
    }


def test_the_index_of_shards_is_what_transformers_writes(run, store, tmp_path):
    name = "model.safetensors.index.json"
    extrapolate(store, 600, tmp_path / "out", method="ols")
    extrapolate(store, 600, tmp_path / "wide", method="ols", dtype="float32")
    if not (run / "checkpoint-300" / name).exists():  # one file has none
        assert not any((tmp_path / out / name).exists() for out in ("out", "wide"))
        return
    original = json.loads((run / "checkpoint-300" / name).read_text())
    found, wide = (json.loads((tmp_path / out / name).read_text()) for out in ("out", "wide"))
    assert found == original
    assert wide["weight_map"] == original["weight_map"]
    assert wide["metadata"]["total_size"] == 2 * original["metadata"]["total_size"]


def test_an_observed_step_is_the_checkpoint_that_was_saved(run, store, tmp_path):
    extrapolate(store, 300, tmp_path / "out", method="two-point", keep=())
    assert_loads(tmp_path / "out", torch.bfloat16)
    original, found = file_contents(run / "checkpoint-300"), file_contents(tmp_path / "out")
    assert {name: found[name] for name in original} == original
