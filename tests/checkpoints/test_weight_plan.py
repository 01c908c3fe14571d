import dataclasses

import numpy as np
import pytest
import safetensors.torch

from ckptlin.checkpoints import HuggingFaceCheckpoint, index_json, plan_files
from ckptlin.dtypes import from_safetensors
from ckptlin.errors import InputError

INDEX = "model.safetensors.index.json"
KINDS = ["tied", "untied", "tied-sharded", "untied-sharded"]


def plan_like(checkpoint, specs=None, **options):
    headers = {file.name: file.header for file in checkpoint.files}
    specs = list(checkpoint.tensors.values()) if specs is None else specs
    return plan_files(specs, checkpoint.file_of, source_headers=headers, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_unchanged_tensors_keep_their_files_and_headers_byte_for_byte(saved, kind):
    checkpoint = HuggingFaceCheckpoint(saved(kind))
    plans = plan_like(checkpoint)
    assert [(plan.name, plan.header) for plan in plans] == [(f.name, f.header) for f in checkpoint.files]
    assert [plan.num_bytes for plan in plans] == [f.num_bytes for f in checkpoint.files]


@pytest.mark.parametrize("kind", KINDS)
def test_another_dtype_keeps_the_division_into_files_and_the_metadata(saved, kind):
    checkpoint = HuggingFaceCheckpoint(saved(kind))
    f32 = from_safetensors("F32")
    plans = plan_like(checkpoint, [dataclasses.replace(s, dtype=f32) for s in checkpoint.tensors.values()])
    located = {name: plan.name for plan in plans for name in plan.layout.tensors}
    assert located == checkpoint.file_of
    for plan in plans:
        assert plan.layout.metadata == {"format": "pt"}
        assert {s.dtype for s in plan.layout.tensors.values()} == {f32}
    assert sum(s.num_bytes for p in plans for s in p.layout.tensors.values()) == 2 * sum(
        s.num_bytes for s in checkpoint.tensors.values()
    )


@pytest.mark.parametrize("max_bytes", [1, 300, 1000, 10**9])
def test_shards_do_not_exceed_the_limit_unless_a_single_tensor_does(saved, max_bytes):
    checkpoint = HuggingFaceCheckpoint(saved("untied"))
    plans = plan_like(checkpoint, max_shard_bytes=max_bytes)
    held = [name for plan in plans for name in plan.layout.tensors]
    assert sorted(held) == sorted(checkpoint.tensors)
    for i, plan in enumerate(plans, start=1):
        sizes = [spec.num_bytes for spec in plan.layout.tensors.values()]
        assert sum(sizes) <= max_bytes or len(sizes) == 1
        assert plan.name == (
            "model.safetensors" if len(plans) == 1 else f"model-{i:05d}-of-{len(plans):05d}.safetensors"
        )


def test_one_file_again_is_the_source_s_file_byte_for_byte(saved):
    checkpoint = HuggingFaceCheckpoint(saved("tied"))
    (plan,) = plan_like(checkpoint, max_shard_bytes=10**9)
    assert plan.header == checkpoint.files[0].header


def test_tied_names_that_a_file_recorded_are_kept_when_it_is_divided(new_model, tmp_path):
    safetensors.torch.save_model(new_model(is_tied=True), tmp_path / "model.safetensors")
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    plans = plan_like(checkpoint, max_shard_bytes=1000)
    assert len(plans) > 1
    assert all(
        plan.layout.metadata == {"format": "pt", "model.embed_tokens.weight": "lm_head.weight"}
        for plan in plans
    )


def test_tensors_are_laid_out_aligned_as_the_safetensors_library_does(save_tensors):
    path = save_tensors(
        "m.safetensors", {"b": np.zeros(3, np.int8), "a": np.zeros(3, np.float16), "c": np.float64(0)}
    )
    checkpoint = HuggingFaceCheckpoint(path)
    specs = sorted(checkpoint.tensors.values(), key=lambda spec: spec.name)
    (plan,) = plan_files(specs, dict.fromkeys("abc", "model.safetensors"), metadata={})
    assert list(plan.layout.tensors) == list(checkpoint.tensors) == ["c", "a", "b"]


@pytest.mark.parametrize("kind", ["tied-sharded", "untied-sharded"])
def test_the_index_has_the_bytes_that_transformers_writes(saved, kind):
    directory = saved(kind)
    assert index_json(plan_like(HuggingFaceCheckpoint(directory))) == (directory / INDEX).read_bytes()


def test_buffers_are_not_counted_as_parameters(save_tensors):
    path = save_tensors("m.safetensors", {"w": np.zeros(3), "rotary_emb.inv_freq": np.zeros(4)})
    assert b'"total_parameters": 3' in index_json(plan_like(HuggingFaceCheckpoint(path)))


def test_a_tensor_without_a_file_is_an_error(saved):
    checkpoint = HuggingFaceCheckpoint(saved("tied"))
    with pytest.raises(InputError, match="has no file to be written to"):
        plan_files(list(checkpoint.tensors.values()), {})


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_a_limit_that_is_not_positive_is_an_error(saved, max_bytes):
    with pytest.raises(InputError, match="must be positive"):
        plan_like(HuggingFaceCheckpoint(saved("tied")), max_shard_bytes=max_bytes)
