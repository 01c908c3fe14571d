import json
import os

import pytest

from ckptlin.checkpoints.model_files import find_model_files, has_weights
from ckptlin.errors import CheckpointNotFoundError, IncompleteCheckpointError, MalformedCheckpointError

INDEX = "model.safetensors.index.json"


def shard(i, n, stem="model"):
    return f"{stem}-{i:05d}-of-{n:05d}.safetensors"


def touch(directory, *names):
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_index(directory, content):
    (directory / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))


def test_model_safetensors_is_preferred_to_an_index_as_transformers_does(tmp_path):
    touch(tmp_path, "model.safetensors", "other.safetensors")
    write_index(tmp_path, {"weight_map": {"w": shard(1, 1)}})
    found = find_model_files(tmp_path)
    assert (found.names, found.weight_map) == (("model.safetensors",), None)


def test_an_index_leads_to_its_shards(tmp_path):
    touch(tmp_path, "b.safetensors", "a.safetensors", "stray.safetensors")
    write_index(tmp_path, {"weight_map": {"w": "b.safetensors", "v": "a.safetensors", "u": "b.safetensors"}})
    assert find_model_files(tmp_path).names == ("a.safetensors", "b.safetensors")


def test_the_only_safetensors_file_is_the_model(tmp_path):
    touch(tmp_path, "weights.safetensors", "adapter_model.safetensors", ".hidden.safetensors")
    assert find_model_files(tmp_path).names == ("weights.safetensors",)


def test_a_file_is_a_checkpoint_itself(tmp_path):
    touch(tmp_path, "a.safetensors", "b.safetensors")
    found = find_model_files(tmp_path / "b.safetensors")
    assert (found.directory, found.names) == (tmp_path, ("b.safetensors",))


def test_a_complete_set_of_shards_needs_no_index(tmp_path):
    touch(tmp_path, *(shard(i, 3) for i in (1, 2, 3)))
    assert find_model_files(tmp_path).names == tuple(shard(i, 3) for i in (1, 2, 3))


@pytest.mark.parametrize("present", [(1,), (1, 3)])
def test_a_set_of_shards_with_one_missing_is_incomplete(tmp_path, present):
    touch(tmp_path, *(shard(i, 3) for i in present))
    with pytest.raises(IncompleteCheckpointError, match=r"lacks \d of 3 shards: `model-00002-of-00003"):
        find_model_files(tmp_path)


def test_a_shard_beyond_the_set_is_malformed(tmp_path):
    touch(tmp_path, *(shard(i, 2) for i in (1, 2, 3)))
    with pytest.raises(MalformedCheckpointError, match="beyond the 2 shards"):
        find_model_files(tmp_path)


def test_several_files_that_are_no_set_are_not_guessed_about(tmp_path):
    touch(tmp_path, shard(1, 2), shard(2, 2), "consolidated.safetensors")
    with pytest.raises(MalformedCheckpointError, match="holds 3 safetensors files"):
        find_model_files(tmp_path)


def test_one_shard_alone_is_not_accepted_as_a_file(tmp_path):
    touch(tmp_path, shard(1, 2), shard(1, 1))
    with pytest.raises(IncompleteCheckpointError, match="one of 2 shards"):
        find_model_files(tmp_path / shard(1, 2))
    assert find_model_files(tmp_path / shard(1, 1)).names == (shard(1, 1),)


def test_an_index_without_its_shards_is_incomplete(tmp_path):
    touch(tmp_path, shard(1, 5))
    write_index(tmp_path, {"weight_map": {str(i): shard(i, 5) for i in range(1, 6)}})
    with pytest.raises(IncompleteCheckpointError, match=r"lacks 4 of the 5 shards .* and 1 more"):
        find_model_files(tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../model.safetensors", "..", ".", "", "sub/model.safetensors", "a\\b", "a\0b"]
)
def test_an_index_that_points_outside_its_directory_is_refused(tmp_path, name):
    write_index(tmp_path, {"weight_map": {"w": name}})
    with pytest.raises(MalformedCheckpointError, match="points outside its directory, and is refused"):
        find_model_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "JSON list where an object is expected"),
        ({}, "has no `weight_map`"),
        ({"weight_map": {}}, "has no `weight_map`"),
        ({"weight_map": {"w": 1}}, "has no `weight_map`"),
    ],
)
def test_an_index_that_is_no_index_is_malformed(tmp_path, content, what):
    write_index(tmp_path, content)
    with pytest.raises(MalformedCheckpointError, match=what):
        find_model_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("adapter_model.safetensors", "PEFT adapter, not a whole model"),
        ("pytorch_model.bin", "pickled PyTorch weights.*convert"),
        ("pytorch_model-00001-of-00002.bin", "pickled PyTorch weights.*convert"),
        ("policy.pt", "pickled PyTorch weights.*convert"),
        ("model_world_size_8_rank_0.pt", "verl's FSDP shards.*verl.model_merger"),
        ("__0_0.distcp", "DCP.*convert"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "FSDP.*accelerate merge-weights"),
        ("mp_rank_00_model_states.pt", "DeepSpeed.*zero_to_fp32"),
        ("model.gguf", "GGUF"),
    ],
)
def test_weights_of_another_format_are_named_with_a_way_to_convert_them(tmp_path, name, what):
    touch(tmp_path, name)
    with pytest.raises(CheckpointNotFoundError, match=what):
        find_model_files(tmp_path)
    assert not has_weights(tmp_path)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "rng_state.pth", "optim_world_size_8_rank_0.pt", "training_args.bin"]
)
def test_training_state_is_not_taken_for_weights(tmp_path, name):
    touch(tmp_path, name)
    with pytest.raises(CheckpointNotFoundError, match=r"holds no model: neither model.safetensors"):
        find_model_files(tmp_path)


def test_an_adapter_file_is_refused(tmp_path):
    touch(tmp_path, "adapter_model.safetensors")
    with pytest.raises(CheckpointNotFoundError, match="PEFT adapter"):
        find_model_files(tmp_path / "adapter_model.safetensors")


def test_a_file_of_another_kind_is_not_found(tmp_path):
    touch(tmp_path, "model.bin")
    with pytest.raises(CheckpointNotFoundError, match="not a safetensors file"):
        find_model_files(tmp_path / "model.bin")


def test_a_path_that_does_not_exist_is_not_found(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="nowhere does not exist"):
        find_model_files(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
def test_a_link_to_a_file_that_is_gone_is_incomplete(tmp_path, name):
    os.symlink(tmp_path / "gone", tmp_path / name)
    assert has_weights(tmp_path)
    with pytest.raises(IncompleteCheckpointError, match="a link to a file that is gone"):
        find_model_files(tmp_path)
