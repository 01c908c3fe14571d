import json
import os
from pathlib import Path

import numpy as np
import pytest

from ckptlin.checkpoints import discover
from ckptlin.checkpoints.run import MODEL_PLACES
from ckptlin.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    IncompleteCheckpointError,
    InputError,
    MalformedCheckpointError,
)


@pytest.fixture
def run_of(save_tensors, tmp_path):
    """Make a run of directories that each hold a model."""

    def make(*names, place="."):
        for name in names:
            save_tensors(f"run/{name}/{place}/model.safetensors")
        return tmp_path / "run"

    return make


@pytest.mark.parametrize(
    "pattern",
    ["checkpoint-{}", "global_step_{}", "global_step{}", "step_{}", "step-{}", "iter_{:07d}", "iteration_{}",
     "ckpt-{}", "global_step{}_hf", "epoch0epochstep3globalstep{}"],
)  # fmt: skip
def test_checkpoints_are_found_by_their_names_and_sorted_by_number(run_of, pattern):
    directory = run_of(*(pattern.format(step) for step in (1000, 20, 100, 3)))
    with discover(directory) as run:
        assert run.steps == (3, 20, 100, 1000)
        assert run.location == str(directory)
        assert [item.path for item in run.checkpoints] == [directory / pattern.format(s) for s in run.steps]
        assert all(item.checkpoint.path == item.path for item in run.checkpoints)
        assert run.skipped == ()


@pytest.mark.parametrize("place", MODEL_PLACES)
def test_the_model_is_found_where_trainers_put_it(run_of, place):
    directory = run_of("global_step_10", "global_step_20", place=place)
    run = discover(directory)
    assert [item.path for item in run.checkpoints] == [directory / f"global_step_{s}" / place for s in (10, 20)]


def test_weights_and_tokenizer_may_lie_in_sibling_directories_as_in_verl(run_of):
    directory = run_of("global_step_10", place="hf_model")
    beside = directory / "global_step_10" / "actor" / "huggingface"
    beside.mkdir(parents=True)
    (beside / "config.json").write_text('{"model_type": "qwen2"}')
    (beside / "tokenizer.json").touch()
    (beside.parent / "model_world_size_2_rank_0.pt").touch()
    (only,) = discover(directory).checkpoints
    assert only.path == directory / "global_step_10" / "hf_model"
    assert only.checkpoint.config == {"model_type": "qwen2"}
    assert only.checkpoint.sidecars["tokenizer.json"] == beside / "tokenizer.json"


def test_what_is_no_checkpoint_is_ignored(run_of, save_tensors):
    directory = run_of("checkpoint-1", "tmp-checkpoint-2", "checkpoint-3.tmp", "runs", "checkpoint-best", "100")
    save_tensors("run/model.safetensors")  # the final copy that a trainer leaves
    (directory / "trainer_state.json").write_text('{"global_step": 9}')
    (directory / "step_7").touch()
    (directory / "latest_checkpointed_iteration.txt").write_text("1")
    assert discover(directory).steps == (1,)


def test_a_checkpoint_itself_is_a_run_of_one_whose_step_is_in_its_name(run_of):
    directory = run_of("checkpoint-100") / "checkpoint-100"
    (directory / "global_step100").mkdir()  # where DeepSpeed keeps the optimizer
    run = discover(directory)
    assert run.steps == (100,)
    assert run.checkpoints[0].path == directory


def test_a_checkpoint_itself_may_have_its_step_in_the_trainer_state(run_of):
    directory = run_of("final") / "final"
    (directory / "trainer_state.json").write_text(json.dumps({"global_step": 70}))
    assert discover(directory).steps == (70,)
    assert discover(str(directory / "model.safetensors")).steps == (70,)


@pytest.mark.parametrize("state", [None, {}, {"global_step": "7"}, {"global_step": -1}])
def test_a_checkpoint_whose_step_cannot_be_told_needs_one(run_of, state):
    directory = run_of("final") / "final"
    if state is not None:
        (directory / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"step of .*final cannot be told.* STEP="):
        discover(directory)


def test_the_current_directory_has_its_name(run_of, monkeypatch):
    monkeypatch.chdir(run_of("checkpoint-100") / "checkpoint-100")
    assert discover(".").steps == (100,)


def test_checkpoints_are_given_one_by_one(run_of):
    directory = run_of("lr=1e-6/a=1", "b", "checkpoint-30")
    run = discover([f"20={directory}/lr=1e-6/a=1", f"10={directory / 'b'}", directory / "checkpoint-30"])
    assert run.steps == (10, 20, 30)
    assert run.checkpoints[1].path == directory / "lr=1e-6" / "a=1"
    assert discover(f"5={directory / 'b'}").steps == (5,)
    assert discover([f"5={directory / 'b' / 'model.safetensors'}"]).steps == (5,)


def test_a_path_with_an_equals_sign_is_no_step(run_of):
    assert discover(str(run_of("lr=1e-6/checkpoint-5") / "lr=1e-6")).steps == (5,)


def test_directories_of_one_run_are_joined(run_of):
    directory = run_of("first/checkpoint-1", "resumed/checkpoint-2")
    assert discover([directory / "first", directory / "resumed"]).steps == (1, 2)


def test_the_base_model_is_step_0(run_of):
    directory = run_of("checkpoint-10", "base")
    run = discover(directory, base=directory / "base")
    assert run.steps == (0, 10)
    assert run.checkpoints[0].path == directory / "base"


def test_a_base_model_beside_another_step_0_is_refused(run_of):
    directory = run_of("global_step_0", "global_step_10", "base")
    with pytest.raises(InputError, match=r"base would be step 0, but .*global_step_0 is step 0 already"):
        discover(directory, base=directory / "base")
    assert discover(directory, base=directory / "global_step_0").steps == (0, 10)


@pytest.mark.parametrize(
    "twins", [("checkpoint-100", "global_step_100"), ("checkpoint-100", "checkpoint-0100")]
)
def test_two_directories_of_one_step_are_both_named(run_of, twins):
    directory = run_of(*twins, "checkpoint-200")
    with pytest.raises(CheckpointMismatchError, match="step 100 is there twice") as error:
        discover(directory)
    assert all(str(directory / name) in str(error.value) for name in twins)


@pytest.mark.parametrize(
    "left", [(), ("optimizer.pt", "trainer_state.json"), ("actor/optim_world_size_1_rank_0.pt",)]
)
def test_a_checkpoint_without_weights_is_incomplete_or_skipped(run_of, left):
    directory = run_of("checkpoint-1", "checkpoint-3")
    broken = directory / "checkpoint-2"
    broken.mkdir()
    for name in left:
        (broken / name).parent.mkdir(exist_ok=True)
        (broken / name).touch()
    with pytest.raises(
        IncompleteCheckpointError, match=r"checkpoint step 2 \(.*checkpoint-2\) holds no weights"
    ):
        discover(directory)
    run = discover(directory, skip_incomplete=True)
    assert run.steps == (1, 3)
    ((step, path, reason),) = run.skipped
    assert (step, path) == (2, broken)
    assert "holds no weights" in reason


def test_a_checkpoint_that_is_cut_short_is_incomplete_or_skipped(run_of):
    directory = run_of("checkpoint-1", "checkpoint-2")
    os.truncate(directory / "checkpoint-2" / "model.safetensors", 50)
    with pytest.raises(IncompleteCheckpointError, match="checkpoint-2"):
        discover(directory)
    run = discover(directory, skip_incomplete=True)
    assert (run.steps, [item.step for item in run.skipped]) == ((1,), [2])


def test_a_malformed_checkpoint_is_never_skipped(run_of):
    directory = run_of("checkpoint-1", "checkpoint-2")
    (directory / "checkpoint-2" / "model.safetensors").write_bytes(b"no safetensors file at all")
    with pytest.raises(MalformedCheckpointError, match="checkpoint-2"):
        discover(directory, skip_incomplete=True)


def test_a_run_of_nothing_but_incomplete_checkpoints_is_not_found(run_of):
    directory = run_of("checkpoint-1")
    (directory / "checkpoint-1" / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointNotFoundError,
        match=r"no complete checkpoint; 1 were skipped, the first because .*has 0 bytes",
    ):
        discover(directory, skip_incomplete=True)


def test_the_final_copy_does_not_hide_that_all_checkpoints_lost_their_weights(run_of, save_tensors):
    directory = run_of("checkpoint-1")
    save_tensors("run/model.safetensors")
    (directory / "checkpoint-1" / "model.safetensors").unlink()
    with pytest.raises(IncompleteCheckpointError, match="checkpoint-1"):
        discover(directory)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("actor/model_world_size_8_rank_0.pt", "verl's FSDP shards .*verl.model_merger"),
        ("adapter_model.safetensors", "PEFT adapter"),
        ("pytorch_model.bin", "pickled PyTorch weights"),
        ("policy/weights/__0_0.distcp", "DCP"),
    ],
)
def test_a_run_of_another_format_is_not_found_and_the_format_named(tmp_path, file, what):
    path = tmp_path / "global_step_5" / file
    path.parent.mkdir(parents=True)
    path.touch()
    for given in (tmp_path, tmp_path / "global_step_5"):
        with pytest.raises(CheckpointNotFoundError, match=rf"checkpoint step 5 .*{what}"):
            discover(given, skip_incomplete=True)


def test_a_directory_without_checkpoints_says_what_was_looked_for(tmp_path):
    (tmp_path / "logs").mkdir()
    with pytest.raises(CheckpointNotFoundError, match=r"neither a directory named checkpoint-N, .*STEP=PATH"):
        discover(tmp_path)


def test_a_directory_of_another_format_says_so(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(
        CheckpointNotFoundError, match=r"pickled PyTorch weights \(pytorch_model.bin\): convert"
    ):
        discover(tmp_path)


@pytest.mark.parametrize("run", ["nowhere", ["5=nowhere"], Path("nowhere")])
def test_a_path_that_does_not_exist_is_not_found(run):
    with pytest.raises(CheckpointNotFoundError, match=r"nowhere.* does not exist"):
        discover(run)


def test_a_base_that_does_not_exist_is_not_found(run_of):
    with pytest.raises(CheckpointNotFoundError, match="base model nowhere does not exist"):
        discover(run_of("checkpoint-1"), base="nowhere")


def test_nothing_given_is_an_error():
    with pytest.raises(InputError, match="no checkpoint was given"):
        discover([])


def test_closing_a_run_closes_its_checkpoints(run_of):
    with discover(run_of("checkpoint-1")) as run:
        pass
    with pytest.raises(ValueError, match="was closed"):
        run.checkpoints[0].checkpoint.read_into("w", 0, np.empty(6, np.float32))


def test_an_extrapolated_checkpoint_is_not_taken_for_a_trained_one(run_of):
    directory = run_of("checkpoint-1", "checkpoint-2")
    (directory / "checkpoint-2" / "ckptlin.json").write_text("{}")
    with pytest.raises(InputError, match=r"step 2 .*checkpoint-2\) was extrapolated .*STEP=PATH"):
        discover(directory)
    with discover([f"1={directory}/checkpoint-1", f"2={directory}/checkpoint-2"]) as run:
        assert run.steps == (1, 2)
