import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ckptlin.checkpoints import RunTrajectories, discover
from ckptlin.errors import CheckpointMismatchError, SelectionError
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
