import math
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ckptlin.checkpoints import RunTrajectories, discover
from ckptlin.errors import (
    CheckpointError,
    CheckpointMismatchError,
    IncompleteCheckpointError,
    SelectionError,
)
from ckptlin.store.layout import blocks_of
from ckptlin.trajectory import Block


def partition(spec, size=7):
    num_blocks = math.ceil(spec.num_params / size)
    return [Block(spec.name, i * size, min((i + 1) * size, spec.num_params), (i,)) for i in range(num_blocks)]


@pytest.fixture
def trained(new_model, tmp_path):
    for step in range(3):
        model = new_model(is_tied=True, seed=step)
        model.save_pretrained(
            tmp_path / f"checkpoint-{step * 10}", max_shard_size="1KB" if step == 1 else "1GB"
        )
    return tmp_path


def test_blocks_put_together_are_the_tensors_of_every_checkpoint(trained):
    source = RunTrajectories(discover(trained), partition=partition)
    assert source.steps == (0, 10, 20)
    assert source.location == str(trained)
    assert source.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    wanted = {}
    for step in source.steps:
        for file in (trained / f"checkpoint-{step}").glob("*.safetensors"):
            for name, tensor in load_file(file).items():
                wanted.setdefault(name, []).append(tensor.flatten().view(torch.uint16).numpy())
    assert source.tensors.keys() == wanted.keys()
    for name in source.tensors:
        blocks = [source.read_block(block, range(3)) for block in source.blocks(name)]
        assert all(block.dtype == np.uint16 and block.flags.c_contiguous for block in blocks)
        assert (np.concatenate(blocks, axis=1) == np.stack(wanted[name])).all()
    source.close()


def test_rows_come_in_the_order_asked_for(trained):
    source = RunTrajectories(discover(trained), partition=partition)
    (first, *_) = source.blocks("model.embed_tokens.weight")
    rows = source.read_block(first, [2, 0, 2])
    assert (rows == source.read_block(first, range(3))[[2, 0, 2]]).all()
    assert source.read_block(first, []).shape == (0, 7)


def test_a_scalar_and_an_empty_tensor_have_their_blocks(save_tensors, tmp_path):
    for step in (1, 2):
        save_tensors(
            f"step_{step}/model.safetensors", {"s": np.float32(step), "e": np.zeros((0, 2), np.float32)}
        )
    source = RunTrajectories(discover(tmp_path), partition=partition)
    assert source.blocks("e") == ()
    assert source.read_block(source.blocks("s")[0], [0, 1]).view(np.float32).tolist() == [[1.0], [2.0]]


def test_checkpoints_that_do_not_fit_together_are_refused(save_tensors, tmp_path):
    save_tensors("step_1/model.safetensors", {"w": np.zeros(2, np.float32)})
    save_tensors("step_2/model.safetensors", {"w": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointMismatchError):
        RunTrajectories(discover(tmp_path), partition=partition)


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_that_does_not_exist_is_an_error(trained, row):
    source = RunTrajectories(discover(trained), partition=partition)
    with pytest.raises(SelectionError, match=f"row {row} does not exist"):
        source.read_block(source.blocks("model.norm.weight")[0], [row])


def test_an_unknown_tensor_is_an_error(trained):
    source = RunTrajectories(discover(trained), partition=partition)
    with pytest.raises(SelectionError, match="no tensor `nothing`"):
        source.blocks("nothing")


def test_a_copy_in_another_process_reads_the_same_bits(trained, tmp_path, monkeypatch):
    (trained / "checkpoint-0").rename(trained / "base")
    monkeypatch.chdir(tmp_path)
    source = RunTrajectories(discover([".", "15=checkpoint-10"], base="base"), partition=blocks_of)
    (tmp_path / "pickled").write_bytes(pickle.dumps(pickle.loads(pickle.dumps(source))))
    program = (
        "import pathlib, pickle, sys\n"
        f"source = pickle.loads(pathlib.Path({str(tmp_path / 'pickled')!r}).read_bytes())\n"
        "assert 'ckptlin.store.layout' in sys.modules and source._found is None\n"
        "assert (source.location, source.steps) == ('., 15=checkpoint-10', (0, 10, 15, 20))\n"
        "block = source.blocks('model.embed_tokens.weight')[0]\n"
        "sys.stdout.buffer.write(source.read_block(block, range(4)).tobytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd="/")
    assert done.stderr == b""
    block = source.blocks("model.embed_tokens.weight")[0]
    assert done.stdout == source.read_block(block, range(4)).tobytes()


def test_a_copy_of_a_run_that_has_changed_is_refused(trained, save_tensors):
    kept = pickle.dumps(RunTrajectories(discover(trained), partition=blocks_of))
    assert pickle.loads(kept).tensors

    os.utime(trained / "checkpoint-20/model.safetensors", ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"step 20 \(.*checkpoint-20\) has changed since it was opened"):
        pickle.loads(kept).blocks("model.norm.weight")

    save_tensors("checkpoint-30/model.safetensors")
    with pytest.raises(CheckpointError, match="has changed since it was opened: step 30 is new"):
        pickle.loads(kept).blocks("model.norm.weight")

    shutil.rmtree(trained / "checkpoint-30")
    shutil.rmtree(trained / "checkpoint-20")
    with pytest.raises(CheckpointError, match="has changed since it was opened: step 20 is gone"):
        pickle.loads(kept).read_block(Block("model.norm.weight", 0, 1, (0,)), [0])


def test_prefetching_asks_for_the_bytes_that_are_read_next(trained, monkeypatch):
    source = RunTrajectories(discover(trained), partition=partition)
    block = source.blocks("model.embed_tokens.weight")[1]
    asked = []

    def record(fd, offset, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append(os.pread(fd, length, offset))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fadvise", record, raising=False)
        patched.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
        source.prefetch(block, [2, 1])
    assert asked == [row.tobytes() for row in source.read_block(block, [2, 1])]
    source.prefetch(block, range(3))
    with pytest.raises(SelectionError, match="row 3 does not exist"):
        source.prefetch(block, [3])


def test_prefetching_leaves_complaints_to_the_read(trained):
    source = RunTrajectories(discover(trained), partition=partition)
    block = source.blocks("model.embed_tokens.weight")[0]
    (trained / "checkpoint-0/model.safetensors").unlink()
    source.prefetch(block, [0])
    with pytest.raises(IncompleteCheckpointError, match="was deleted"):
        source.read_block(block, [0])
