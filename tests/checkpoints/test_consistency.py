import numpy as np
import pytest

from ckptlin.checkpoints import check_consistent, discover
from ckptlin.errors import CheckpointMismatchError


def model(*, num_rows=4, dtype=np.float32, names=("embed", "lm_head.weight")):
    return {name: np.zeros((num_rows, 2), dtype) for name in names}


@pytest.fixture
def pair(save_tensors, tmp_path):
    def make(second, first=None):
        save_tensors("checkpoint-0/model.safetensors", model() if first is None else first)
        save_tensors("checkpoint-300/model.safetensors", second)
        return discover(tmp_path).checkpoints

    return make


def test_sharding_and_order_may_differ(saved, tmp_path):
    saved("tied", "checkpoint-1")
    saved("tied-sharded", "checkpoint-2")
    checkpoints = discover(tmp_path).checkpoints
    assert len(checkpoints[0].checkpoint.files) < len(checkpoints[1].checkpoint.files)
    check_consistent(checkpoints)


def test_another_shape_is_named_with_both_checkpoints(pair, tmp_path):
    with pytest.raises(CheckpointMismatchError) as error:
        check_consistent(pair(model(num_rows=5)))
    assert str(error.value) == (
        f"tensor `embed` in checkpoint step 300 ({tmp_path}/checkpoint-300) has shape (5, 2), "
        f"but step 0 ({tmp_path}/checkpoint-0) has (4, 2); "
        "ingest runs of different models into different stores"
    )


def test_another_dtype_is_named_with_both_checkpoints(pair):
    with pytest.raises(
        CheckpointMismatchError, match=r"step 300 .* has dtype float16, but step 0 .* has float32"
    ):
        check_consistent(pair(model(dtype=np.float16)))


def test_missing_and_new_tensors_are_named_and_counted(pair):
    names = ["a", "b", "c", "d", "e", "f"]
    with pytest.raises(
        CheckpointMismatchError,
        match=r"step 300 \(.*\) lacks 5 tensors that step 0 \(.*\) has: `b`, `c`, `d` and 2 more",
    ):
        check_consistent(pair(model(names=names[:1]), model(names=names)))


def test_a_tensor_that_only_a_later_checkpoint_has_is_named(pair):
    with pytest.raises(
        CheckpointMismatchError, match=r"step 0 \(.*\) lacks 1 tensor that step 300 \(.*\) has: `extra`"
    ):
        check_consistent(pair(model(names=("embed", "lm_head.weight", "extra"))))


def test_a_base_with_tied_weights_under_untied_checkpoints_is_explained(saved, tmp_path):
    saved("tied", "checkpoint-0")
    saved("untied", "checkpoint-1")
    with pytest.raises(
        CheckpointMismatchError, match=r"`lm_head.weight` is tied to `model.embed_tokens.weight` there"
    ):
        check_consistent(discover(tmp_path).checkpoints)


def test_no_checkpoints_are_consistent():
    check_consistent([])
