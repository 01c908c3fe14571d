import errno
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from ckptlin.checkpoints import (
    CheckpointWriter,
    HuggingFaceCheckpoint,
    WeightFilePlan,
    build_header,
    plan_files,
)
from ckptlin.dtypes import from_safetensors
from ckptlin.errors import (
    DiskFullError,
    IncompleteCheckpointError,
    InputError,
    OutputExistsError,
    SelectionError,
)
from ckptlin.trajectory import TensorSpec

INDEX = "model.safetensors.index.json"
KINDS = ["tied", "untied", "tied-sharded", "untied-sharded"]
F32 = from_safetensors("F32")


def plan(name="model.safetensors", **shapes):
    return WeightFilePlan(
        name, build_header([TensorSpec(n, F32, shape) for n, shape in (shapes or {"w": (4,)}).items()])
    )


def write_all(writer, checkpoint):
    for name, spec in checkpoint.tensors.items():
        values = np.empty(spec.num_params, spec.dtype.bits)
        checkpoint.read_into(name, 0, values)
        writer.write(name, 0, values)


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_written_from_its_own_headers_is_the_same_byte_for_byte(saved, tmp_path, kind):
    source = saved(kind)
    out = tmp_path / "new" / "out"
    with HuggingFaceCheckpoint(source) as checkpoint:
        plans = [WeightFilePlan(file.name, file.header) for file in checkpoint.files]
        with CheckpointWriter(out, plans) as writer:
            write_all(writer, checkpoint)
            for name, path in checkpoint.sidecars.items():
                if name != INDEX:
                    writer.add_file(name, path.read_bytes())
            assert not out.exists()
            writer.commit()
    assert contents(out) == contents(source)
    assert names_in(out.parent) == ["out"]


@pytest.mark.parametrize("max_shard_bytes", [None, 700])
def test_transformers_loads_what_was_written_in_another_dtype(saved, tmp_path, max_shard_bytes):
    source, out = saved("tied"), tmp_path / "out"
    with HuggingFaceCheckpoint(source) as checkpoint:
        specs = [TensorSpec(s.name, F32, s.shape) for s in checkpoint.tensors.values()]
        headers = {file.name: file.header for file in checkpoint.files}
        plans = plan_files(specs, checkpoint.file_of, source_headers=headers, max_shard_bytes=max_shard_bytes)
        with CheckpointWriter(out, plans) as writer:
            for name in checkpoint.tensors:
                writer.write(name, 0, checkpoint.memmap(name).astype(np.float32).reshape(-1))
            writer.add_file("config.json", checkpoint.sidecars["config.json"].read_bytes())
            writer.commit()
    assert (INDEX in names_in(out)) == (max_shard_bytes is not None)
    wanted = Qwen2ForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    found = Qwen2ForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys()
    assert all((found[name] == wanted[name]).all() for name in wanted)


def test_a_single_file_of_another_name_gets_an_index_by_which_it_is_found(tmp_path):
    with CheckpointWriter(tmp_path / "out", [plan("weights.safetensors")]) as writer:
        writer.write("w", 0, np.zeros(4, np.float32))
        writer.commit()
    assert names_in(tmp_path / "out") == [INDEX, "weights.safetensors"]
    assert HuggingFaceCheckpoint(tmp_path / "out").tensors["w"].shape == (4,)


def test_pieces_are_written_in_any_order_by_any_thread_in_small_writes(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:5], at))
    values = np.arange(1000, dtype=np.float32)
    with CheckpointWriter(tmp_path / "out", [plan(v=(3,), w=(10, 100), s=(), e=(0, 2))]) as writer:
        writer.write("v", 0, np.ones(3, np.float32))
        writer.write("s", 0, np.ones(1, np.float32))
        writer.write("e", 0, np.empty(0, np.float32))

        def work(seed):
            for start in range(seed * 10, 1000, 80):
                writer.write("w", start, values[start : start + 10].view(np.uint32))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.commit()
    checkpoint = HuggingFaceCheckpoint(tmp_path / "out")
    assert (checkpoint.memmap("w") == values.reshape(10, 100)).all()
    assert (checkpoint.memmap("v") == 1).all()
    assert checkpoint.memmap("s") == 1


def test_files_have_their_final_size_from_the_start(tmp_path):
    with CheckpointWriter(tmp_path / "out", [plan(w=(1000,))]) as writer:
        (partial,) = tmp_path.iterdir()
        assert partial.name.startswith(".out.partial-")
        assert (partial / "model.safetensors").stat().st_size == writer.num_bytes == plan(w=(1000,)).num_bytes


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with CheckpointWriter(tmp_path / "out", [plan(w=(0,))]) as writer:
            writer.add_file("config.json", b"{}")
            writer.commit()
    finally:
        os.umask(old)
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out", *(tmp_path / "out").iterdir())
    }
    assert modes == {"out": 0o750, "model.safetensors": 0o640, "config.json": 0o640}


def fail_while_writing(out, **options):
    with CheckpointWriter(out, [plan()], **options) as writer:
        writer.write("w", 0, np.zeros(4, np.float32))
        raise RuntimeError


def test_nothing_is_left_when_the_block_fails(tmp_path):
    with pytest.raises(RuntimeError):
        fail_while_writing(tmp_path / "out")
    assert names_in(tmp_path) == []


def test_nothing_is_left_without_a_commit(tmp_path):
    with CheckpointWriter(tmp_path / "out", [plan()]):
        pass
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("pieces", [[], [(0, 3)], [(0, 4), (0, 1)]])
def test_a_checkpoint_is_not_committed_before_each_byte_was_written_once(tmp_path, pieces):
    with CheckpointWriter(tmp_path / "out", [plan()]) as writer:
        for start, count in pieces:
            writer.write("w", start, np.zeros(count, np.float32))
        with pytest.raises(IncompleteCheckpointError, match=r"tensor `w` of .*out has 16 bytes, but"):
            writer.commit()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("start", "values"),
    [
        (0, np.zeros((2, 2), np.float32)),
        (0, np.zeros(8, np.float32)[::2]),
        (0, np.zeros(4, np.float64)),
        (0, np.zeros(4, np.int32)),
        (1, np.zeros(4, np.float32)),
        (-1, np.zeros(4, np.float32)),
    ],
)
def test_an_array_that_does_not_fit_is_refused(tmp_path, start, values):
    with CheckpointWriter(tmp_path / "out", [plan()]) as writer, pytest.raises(InputError, match="tensor `w`"):
        writer.write("w", start, values)


def test_a_tensor_that_no_file_has_is_refused(tmp_path):
    with (
        CheckpointWriter(tmp_path / "out", [plan()]) as writer,
        pytest.raises(SelectionError, match="tensor `v`"),
    ):
        writer.write("v", 0, np.zeros(4, np.float32))


@pytest.mark.parametrize(
    "plans",
    [
        [plan(), plan(v=(1,))],
        [plan("a.safetensors"), plan("b.safetensors")],
        [plan("../a.safetensors")],
        [plan("/a.safetensors")],
    ],
)
def test_files_that_clash_or_lie_outside_are_refused(tmp_path, plans):
    with pytest.raises(InputError):
        CheckpointWriter(tmp_path / "out", plans)
    assert names_in(tmp_path) == []


def test_files_are_added_beside_the_weights(tmp_path):
    with CheckpointWriter(tmp_path / "out", [plan(w=(0,))]) as writer:
        writer.add_file("additional_chat_templates/tools.jinja", b"{{ x }}")
        writer.add_file("config.json", b"{}")
        for name in ("config.json", "model.safetensors"):
            with pytest.raises(InputError, match="already"):
                writer.add_file(name, b"")
        for name in (
            "",
            "..",
            "../x",
            "/etc/x",
            "sub/x",
            "additional_chat_templates/../x",
            "a\0",
            "config.json/",
        ):
            with pytest.raises(InputError, match="plain file name"):
                writer.add_file(name, b"")
        writer.commit()
    assert contents(tmp_path / "out")["additional_chat_templates/tools.jinja"] == b"{{ x }}"


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}", b'{"weight_map": {"w": "model.safetensors"}}'])
def test_an_index_of_other_files_is_refused(tmp_path, index):
    with (
        CheckpointWriter(tmp_path / "out", [plan("a.safetensors")]) as writer,
        pytest.raises(InputError, match="index"),
    ):
        writer.add_file(INDEX, index)


def test_the_source_s_index_is_kept_as_it_is_where_it_fits(tmp_path):
    index = b'{"weight_map":{"w":"a.safetensors"},"metadata":{"total_size":16}}'
    with CheckpointWriter(tmp_path / "out", [plan("a.safetensors")]) as writer:
        writer.write("w", 0, np.zeros(4, np.float32))
        with pytest.raises(InputError, match="index"):
            writer.add_file(INDEX, index.replace(b"16", b"32"))
        writer.add_file(INDEX, index)
        writer.commit()
    assert (tmp_path / "out" / INDEX).read_bytes() == index


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(DiskFullError, match=r"out takes \d+ bytes of weights, but its disk has 10 bytes free"):
        CheckpointWriter(tmp_path / "out", [plan()])
    assert names_in(tmp_path) == []


def test_a_disk_that_is_full_when_files_are_allocated_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(DiskFullError, match=r"the disk is full: .*model.safetensors could not be written"):
        CheckpointWriter(tmp_path / "out", [plan()])
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
@pytest.mark.parametrize(
    ("error", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, OSError)]
)
def test_a_disk_that_fails_on_the_way_leaves_nothing(tmp_path, monkeypatch, call, error, kind):
    def fail(*_):
        raise OSError(error, os.strerror(error))

    writer = CheckpointWriter(tmp_path / "out", [plan()])
    monkeypatch.setattr(os, call, fail)

    def write_and_commit():
        with writer:
            writer.write("w", 0, np.zeros(4, np.float32))
            writer.commit()

    with pytest.raises(kind) as caught:
        write_and_commit()
    assert type(caught.value) is kind
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_a_file_system_that_cannot_allocate_still_gets_files_of_full_size(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with CheckpointWriter(tmp_path / "out", [plan()]) as writer:
        writer.write("w", 0, np.ones(4, np.float32))
        writer.commit()
    assert (HuggingFaceCheckpoint(tmp_path / "out").memmap("w") == 1).all()


def write_ones(out, **options):
    with CheckpointWriter(out, [plan()], **options) as writer:
        writer.write("w", 0, np.ones(4, np.float32))
        writer.commit()


def test_a_checkpoint_is_overwritten_only_on_request(saved):
    out = saved("tied-sharded", "out")
    before = contents(out)
    with pytest.raises(OutputExistsError, match="out is there already"):
        CheckpointWriter(out, [plan()])
    assert contents(out) == before
    write_ones(out, overwrite=True)
    assert names_in(out) == ["model.safetensors"]
    assert names_in(out.parent) == ["out"]


def test_a_failed_overwrite_leaves_the_old_checkpoint(saved):
    out = saved("tied", "out")
    before = contents(out)
    with pytest.raises(RuntimeError):
        fail_while_writing(out, overwrite=True)
    assert contents(out) == before
    assert names_in(out.parent) == ["out"]


def test_an_empty_directory_is_no_obstacle(tmp_path):
    (tmp_path / "out").mkdir()
    write_ones(tmp_path / "out")
    assert names_in(tmp_path / "out") == ["model.safetensors"]


def test_what_comes_into_being_meanwhile_is_not_overwritten(tmp_path):
    out = tmp_path / "out"
    with CheckpointWriter(out, [plan(w=(0,))]) as writer:
        out.mkdir()
        (out / "config.json").write_text("theirs")
        with pytest.raises(OutputExistsError):
            writer.commit()
    assert contents(out) == {"config.json": b"theirs"}
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_comes_into_being_at_the_last_moment_is_not_overwritten_either(tmp_path, monkeypatch, kind):
    out = tmp_path / "out"
    with CheckpointWriter(out, [plan(w=(0,))]) as writer:
        theirs = out / "config.json" if kind == "directory" else out
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_text("theirs")
        monkeypatch.setattr("ckptlin.checkpoints.writer.check_output", lambda *_, **__: None)
        with pytest.raises(OutputExistsError):
            writer.commit()
    assert theirs.read_text() == "theirs"
    assert names_in(tmp_path) == ["out"]


def test_overwriting_may_be_asked_for_at_the_commit(tmp_path):
    out = tmp_path / "out"
    with CheckpointWriter(out, [plan(w=(0,))]) as writer:
        out.mkdir()
        (out / "config.json").write_text("theirs")
        writer.commit(overwrite=True)
    assert names_in(out) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["thesis.tex"], "holds no model but thesis.tex"),
        (["model.safetensors", "checkpoint-100/model.safetensors"], "holds the directory checkpoint-100"),
        (["config.json", ".git/HEAD"], "holds the directory .git"),
    ],
)
def test_a_directory_that_is_not_a_model_alone_is_never_overwritten(tmp_path, names, what):
    out = tmp_path / "out"
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    before = contents(out)
    with pytest.raises(OutputExistsError, match=what):
        CheckpointWriter(out, [plan()], overwrite=True)
    assert contents(out) == before


def test_a_file_is_never_overwritten(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputExistsError, match="not a directory"):
        CheckpointWriter(tmp_path / "out", [plan()], overwrite=True)


def test_a_link_to_a_directory_stays_a_link(saved, tmp_path):
    real = saved("tied", "real")
    os.symlink(real, tmp_path / "out")
    write_ones(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert names_in(real) == ["model.safetensors"]
    assert names_in(tmp_path) == ["out", "real"]


def test_a_long_name_still_has_room_for_the_partial_one(tmp_path):
    write_ones(tmp_path / ("é" * 120))
    assert names_in(tmp_path) == ["é" * 120]
