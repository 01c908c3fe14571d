import json
import os
import threading

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from ckptlin.checkpoints import HuggingFaceCheckpoint, build_header
from ckptlin.dtypes import DTYPES, from_safetensors
from ckptlin.errors import (
    CheckpointNotFoundError,
    IncompleteCheckpointError,
    InputError,
    MalformedCheckpointError,
    SelectionError,
)
from ckptlin.trajectory import TensorSpec

INDEX = "model.safetensors.index.json"
KINDS = ["tied", "untied", "tied-sharded", "untied-sharded"]


def read(checkpoint, name):
    spec = checkpoint.tensors[name]
    out = np.empty(spec.num_params, spec.dtype.bits)
    checkpoint.read_into(name, 0, out)
    return out


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


@pytest.fixture
def mixed(save_tensors):
    """One tensor of every type, a scalar, and empty ones."""
    rng = np.random.default_rng(0)
    tensors = {}
    for d in DTYPES:
        raw = rng.integers(0, 2 if d.safetensors == "BOOL" else 256, 5 * d.itemsize, dtype=np.uint8)
        tensors[d.safetensors] = torch.from_numpy(raw).view(getattr(torch, d.zarr))
    tensors |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "none": torch.zeros(2, 0, dtype=torch.int64),
    }
    return save_tensors("model.safetensors", tensors), tensors


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_a_transformers_checkpoint_is_read_bit_for_bit(saved, kind):
    directory = saved(kind)
    wanted = {}
    for file in sorted(directory.glob("*.safetensors")):
        wanted |= safetensors.torch.load_file(file)
    with HuggingFaceCheckpoint(directory) as checkpoint:
        assert checkpoint.tensors.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert checkpoint.tensors[name].shape == tuple(tensor.shape)
            assert (read(checkpoint, name).view(np.uint8) == bits(tensor)).all()
            mapped = checkpoint.memmap(name)
            assert mapped.dtype == ml_dtypes.bfloat16
            assert (mapped.astype(np.float32) == tensor.float().numpy()).all()
        assert [file.name for file in checkpoint.files] == sorted(
            p.name for p in directory.glob("*.safetensors")
        )
        assert checkpoint.config["model_type"] == "qwen2"


def test_tensors_come_in_the_order_of_files_and_offsets(saved):
    checkpoint = HuggingFaceCheckpoint(saved("untied-sharded"))
    order = [
        (checkpoint.file_of[name], checkpoint.headers[checkpoint.file_of[name]].offsets[name])
        for name in checkpoint.tensors
    ]
    assert order == sorted(order)
    assert len(checkpoint.files) > 2


def test_every_dtype_scalars_and_empty_tensors_are_read(mixed):
    path, tensors = mixed
    with HuggingFaceCheckpoint(path) as checkpoint:
        for name, tensor in tensors.items():
            spec = checkpoint.tensors[name]
            mapped = checkpoint.memmap(name)
            assert (mapped.shape, mapped.dtype) == (tuple(tensor.shape), spec.dtype.numpy)
            assert not mapped.flags.writeable
            typed = np.empty(spec.num_params, spec.dtype.numpy)
            checkpoint.read_into(name, 0, typed)
            for values in (typed, read(checkpoint, name), np.ascontiguousarray(mapped).reshape(-1)):
                assert values.view(np.uint8).tolist() == bits(tensor).tolist()


def test_a_part_of_a_tensor_is_read_without_touching_another_byte(tmp_path, monkeypatch):
    num_params = 1 << 33
    header = build_header([TensorSpec("w", from_safetensors("F32"), (num_params,))])
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # 32 GiB, nearly all of it a hole
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(file.tell() + 4 * num_params)
        file.seek(-40, os.SEEK_END)
        file.write(np.arange(10, dtype=np.float32).tobytes())
    touched = []
    preadv = os.preadv

    def record(fd, buffers, offset):
        touched.append((offset, sum(map(len, buffers))))
        return preadv(fd, buffers, offset)

    with HuggingFaceCheckpoint(path) as checkpoint:
        monkeypatch.setattr(os, "preadv", record)
        out = np.empty(4, np.float32)
        checkpoint.read_into("w", num_params - 7, out)
    assert out.tolist() == [3, 4, 5, 6]
    assert touched == [(path.stat().st_size - 28, 16)]


def test_short_reads_are_continued(mixed, monkeypatch):
    path, tensors = mixed
    preadv = os.preadv
    with HuggingFaceCheckpoint(path) as checkpoint:
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:3]], at))
        assert read(checkpoint, "F64").view(np.uint8).tolist() == bits(tensors["F64"]).tolist()


def test_threads_read_the_same_file(saved):
    with HuggingFaceCheckpoint(saved("untied-sharded")) as checkpoint:
        wanted = {name: read(checkpoint, name).tolist() for name in checkpoint.tensors}
        wrong = []

        def work(seed):
            for name in np.random.default_rng(seed).permutation(list(wanted)):
                if read(checkpoint, str(name)).tolist() != wanted[name]:
                    wrong.append(name)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_an_unopened_checkpoint_holds_no_descriptor_and_a_read_one_holds_few(saved):
    def num_open():
        return len(os.listdir("/dev/fd"))

    before = num_open()
    checkpoint = HuggingFaceCheckpoint(saved("untied-sharded"))
    assert num_open() == before
    for name in checkpoint.tensors:
        read(checkpoint, name)
    assert num_open() <= before + 2 < before + len(checkpoint.files)
    checkpoint.close()
    assert num_open() == before


def test_a_closed_checkpoint_reads_nothing(saved):
    checkpoint = HuggingFaceCheckpoint(saved("tied"))
    checkpoint.close()
    with pytest.raises(ValueError, match="was closed"):
        read(checkpoint, "model.norm.weight")


def test_a_file_that_ends_early_is_incomplete(saved):
    directory = saved("tied")
    with HuggingFaceCheckpoint(directory) as checkpoint:
        os.truncate(directory / "model.safetensors", 2000)
        with pytest.raises(IncompleteCheckpointError, match=r"ends inside tensor `model.norm.weight`"):
            read(checkpoint, "model.norm.weight")
        with pytest.raises(IncompleteCheckpointError, match=r"ends inside tensor `model.norm.weight`"):
            checkpoint.memmap("model.norm.weight")


def test_a_file_that_was_deleted_meanwhile_is_incomplete(saved):
    directory = saved("tied")
    with HuggingFaceCheckpoint(directory) as checkpoint:
        (directory / "model.safetensors").unlink()
        with pytest.raises(IncompleteCheckpointError, match="was deleted after"):
            read(checkpoint, "model.norm.weight")
        with pytest.raises(IncompleteCheckpointError, match="was deleted after"):
            checkpoint.memmap("model.norm.weight")


@pytest.mark.parametrize(
    ("start", "out"),
    [
        (0, np.empty((2, 4), np.uint16)),
        (0, np.empty(16, np.uint16)[::2]),
        (0, np.empty(8, np.float32)),
        (0, np.empty(8, np.int16)),
        (0, np.empty(9, np.uint16)),
        (5, np.empty(4, np.uint16)),
        (-1, np.empty(4, np.uint16)),
        (0, np.frombuffer(bytes(16), np.uint16)),
    ],
)
def test_an_array_that_does_not_fit_is_refused(saved, start, out):
    with (
        HuggingFaceCheckpoint(saved("tied")) as checkpoint,
        pytest.raises(InputError, match=r"model.norm.weight"),
    ):
        checkpoint.read_into("model.norm.weight", start, out)


def test_an_unknown_tensor_is_named(saved):
    with HuggingFaceCheckpoint(saved("tied")) as checkpoint:
        with pytest.raises(SelectionError, match=r"no tensor `nothing`"):
            checkpoint.memmap("nothing")
        with pytest.raises(
            SelectionError, match=r"`lm_head.weight`; it is tied to `model.embed_tokens.weight`"
        ):
            checkpoint.memmap("lm_head.weight")


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_of_a_tied_model_stands_for_the_embedding(saved, kind):
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if kind.startswith("tied") else {}
    assert HuggingFaceCheckpoint(saved(kind)).tied == tied


def test_names_that_safetensors_dropped_are_read_from_the_metadata(new_model, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_model(new_model(is_tied=True), path, metadata={"format": "pt"})
    assert HuggingFaceCheckpoint(path).tied == {"model.embed_tokens.weight": "lm_head.weight"}


@pytest.mark.parametrize(
    ("tensors", "config", "tied"),
    [
        (["model.embed_tokens.weight"], {"tie_word_embeddings": True}, "model.embed_tokens.weight"),
        (
            ["model.embed_tokens.weight"],
            {"text_config": {"tie_word_embeddings": True}},
            "model.embed_tokens.weight",
        ),
        (["transformer.wte.weight"], {"architectures": ["GPT2LMHeadModel"]}, "transformer.wte.weight"),
        (["transformer.wte.weight"], {"architectures": ["GPT2ForSequenceClassification"]}, None),
        (["model.embed_tokens.weight"], {"tie_word_embeddings": False}, None),
        (["model.embed_tokens.weight"], {}, None),
        (
            ["model.embed_tokens.weight"],
            {"tie_word_embeddings": True, "text_config": None},
            "model.embed_tokens.weight",
        ),
        (["a.embed_tokens.weight", "b.embed_tokens.weight"], {"tie_word_embeddings": True}, None),
        (["xembed_tokens.weight"], {"tie_word_embeddings": True}, None),
        (["model.embed_tokens.weight", "language_model.lm_head.weight"], {"tie_word_embeddings": True}, None),
    ],
)
def test_the_configuration_says_whether_the_head_is_tied(save_tensors, tensors, config, tied):
    path = save_tensors("m/model.safetensors", {name: np.zeros(2, np.float32) for name in tensors})
    (path.parent / "config.json").write_text(json.dumps(config))
    assert HuggingFaceCheckpoint(path.parent).tied.get("lm_head.weight") == tied


def test_sidecars_are_what_makes_a_checkpoint_complete(saved):
    directory = saved("tied-sharded")
    for name in ("tokenizer.json", "merges.txt", "chat_template.jinja", "sentencepiece.bpe.model",
                 "additional_chat_templates/tools.jinja", "trainer_state.json", "optimizer.pt", "modeling_x.py",
                 "training_args.bin", "README.md"):  # fmt: skip
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).touch()
    sidecars = HuggingFaceCheckpoint(directory).sidecars
    assert sorted(sidecars) == [
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        INDEX,
        "sentencepiece.bpe.model",
        "tokenizer.json",
    ]
    assert all(path == directory / name for name, path in sidecars.items())


def test_an_index_beside_model_safetensors_is_no_sidecar(saved):
    directory = saved("tied")
    (directory / INDEX).write_text("stale")
    assert INDEX not in HuggingFaceCheckpoint(directory).sidecars


def test_sidecars_are_looked_for_in_more_directories(saved, tmp_path):
    directory = saved("tied")
    other = tmp_path / "huggingface"
    other.mkdir()
    (other / "tokenizer.json").touch()
    (other / "config.json").write_text("{}")
    sidecars = HuggingFaceCheckpoint(directory, sidecar_dirs=[other, tmp_path / "none"]).sidecars
    assert sidecars["tokenizer.json"] == other / "tokenizer.json"
    assert sidecars["config.json"] == directory / "config.json"


def test_the_configuration_may_lie_in_another_directory(save_tensors, tmp_path):
    path = save_tensors("hf_model/model.safetensors", {"model.embed_tokens.weight": np.zeros(2, np.float32)})
    other = tmp_path / "huggingface"
    other.mkdir()
    (other / "config.json").write_text('{"tie_word_embeddings": true}')
    assert HuggingFaceCheckpoint(path.parent).config is None
    assert HuggingFaceCheckpoint(path.parent, sidecar_dirs=[other]).tied


def test_a_configuration_that_is_no_json_is_malformed(saved):
    directory = saved("tied")
    (directory / "config.json").write_text("{")
    with pytest.raises(MalformedCheckpointError, match=r"config.json is not valid JSON"):
        HuggingFaceCheckpoint(directory)


def test_links_into_the_hub_cache_are_followed(saved, tmp_path):
    blobs = saved("tied-sharded", "blobs")
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        os.symlink(os.path.relpath(file, snapshot), snapshot / file.name)
    with HuggingFaceCheckpoint(snapshot) as checkpoint:
        assert len(read(checkpoint, "model.norm.weight")) == 8


def test_a_tensor_that_its_shard_lacks_makes_the_checkpoint_incomplete(saved):
    directory = saved("tied-sharded")
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00004.safetensors"
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        IncompleteCheckpointError, match=r"model-00001-of-00004.safetensors lacks `model.extra.weight`"
    ):
        HuggingFaceCheckpoint(directory)


def test_a_tensor_that_the_index_lacks_is_malformed(saved):
    directory = saved("tied-sharded")
    index = json.loads((directory / INDEX).read_text())
    del index["weight_map"]["model.layers.0.mlp.up_proj.weight"]
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(MalformedCheckpointError, match=r"does not list `model.layers.0.mlp.up_proj.weight`"):
        HuggingFaceCheckpoint(directory)


def test_a_tensor_in_two_shards_is_malformed(save_tensors):
    for i in (1, 2):
        path = save_tensors(f"m/model-{i:05d}-of-00002.safetensors")
    with pytest.raises(MalformedCheckpointError, match="tensor `w` is in two shards"):
        HuggingFaceCheckpoint(path.parent)


def test_a_missing_shard_makes_the_checkpoint_incomplete(saved):
    directory = saved("tied-sharded")
    (directory / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"lacks 1 of the 4 shards"):
        HuggingFaceCheckpoint(directory)


def test_a_truncated_shard_makes_the_checkpoint_incomplete(saved):
    directory = saved("tied-sharded")
    os.truncate(directory / "model-00002-of-00004.safetensors", 1500)
    with pytest.raises(IncompleteCheckpointError, match=r"00002-of-00004.safetensors is cut short"):
        HuggingFaceCheckpoint(directory)


def test_an_adapter_is_not_a_model(saved):
    directory = saved("tied")
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    with pytest.raises(CheckpointNotFoundError, match="PEFT adapter"):
        HuggingFaceCheckpoint(directory)
