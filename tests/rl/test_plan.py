"""The plan of a training, held against what the training writes."""

import json
from dataclasses import replace

import pytest

from ckptlin.errors import CheckpointError, DiskFullError, InputError, OutputExistsError
from ckptlin.rl.config import AlgorithmConfig, OptimizerConfig, RlExtraConfig
from ckptlin.rl.plan import plan_training
from ckptlin.rl.step_log import read_log
from ckptlin.rl.trainer import train
from tests.rl_runs import tiny_config
from tests.runs import file_contents


def checkpoints_of(run):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in run.glob("checkpoint-*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 5, "save_every": 2},
        {"steps": 7, "save_every": 2, "optimizer": OptimizerConfig(name="sgd", reset_every=3)},
        {"steps": 7, "save_every": 2, "extra": RlExtraConfig(m=3, n=5)},
        {"steps": 4, "save_every": 1, "extra": RlExtraConfig(m=2, n=0)},
        {"steps": 2, "save_every": 9, "passes": 2, "algorithm": AlgorithmConfig("sft")},
    ],
)
def test_a_training_writes_what_its_plan_says(tiny_model, tmp_path, changes):
    config = tiny_config(tiny_model, **changes)
    run = tmp_path / "deep/in/run"
    plan = plan_training(config, run)
    assert not (tmp_path / "deep").exists()
    assert (plan.resumes_at, plan.steps) == (None, config.steps)
    result = train(config, run)
    assert list(plan.checkpoints) == checkpoints_of(run)
    assert plan.updates == result.state.updates
    assert plan.answers == (0 if config.algorithm.spec.is_supervised else config.steps * 16)
    # Beside the weights a file of safetensors has a header.
    size = (run / "checkpoint-0/model.safetensors").stat().st_size
    assert 0 < size - plan.checkpoint_bytes < 4096
    assert plan.checkpoint_bytes == 4 * plan.num_params
    (state,) = (run / "resume").iterdir()
    size = (state / "optimizer.pt").stat().st_size
    assert plan.optimizer_bytes == (2 if config.optimizer.name == "adamw" else 0) * plan.checkpoint_bytes
    assert 0 <= size - plan.optimizer_bytes < 30_000  # of names and counters
    assert plan_training(config, run).checkpoints == ()


def test_what_is_there_is_not_planned_again(tiny_model, tmp_path):
    run = tmp_path / "run"
    config = tiny_config(tiny_model, steps=4, save_every=2)
    train(config, run)
    before = file_contents(run)
    longer = replace(config, steps=7)
    plan = plan_training(longer, run)
    assert (plan.resumes_at, plan.steps, plan.updates, plan.checkpoints) == (4, 3, 6, (6, 7))
    whole = plan_training(longer, run, overwrite=True)
    assert (whole.resumes_at, whole.steps, whole.checkpoints) == (None, 7, (0, 2, 4, 6, 7))
    assert file_contents(run) == before
    train(longer, run)
    assert checkpoints_of(run) == [0, 2, 4, 6, 7]
    assert len(read_log(run / "log.csv")) == 7


def test_other_settings_and_other_files_are_refused_as_training_would(tiny_model, tmp_path):
    config = tiny_config(tiny_model, steps=1)
    train(config, tmp_path / "run")
    with pytest.raises(InputError, match="seed differ"):
        plan_training(replace(config, seed=1), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="is no training run"):
            plan_training(config, tmp_path / "other", overwrite=overwrite)


def test_a_model_that_is_not_here_has_no_size_and_one_that_is_broken_is_named(tiny_model, tmp_path):
    plan = plan_training(tiny_config("org/model"), tmp_path / "run")
    assert plan.num_params is plan.checkpoint_bytes is plan.bytes_out is None
    plan.check_disk()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="broken"):
        plan_training(tiny_config(broken), tmp_path / "run")


def test_what_will_not_fit_is_refused_with_its_figures(tiny_model, tmp_path):
    plan = plan_training(tiny_config(tiny_model), tmp_path / "run")
    assert plan.bytes_out == 3 * plan.checkpoint_bytes + 2 * plan.optimizer_bytes
    plan.check_disk()
    with pytest.raises(DiskFullError, match=r"3 checkpoints and the optimizer, but its disk has 1\.0 KiB free"):
        replace(plan, free_bytes=1024).check_disk()
    # A run that has ended takes nothing more.
    replace(plan, free_bytes=1024, steps=0).check_disk()


def test_a_plan_is_plain_data(tiny_model, tmp_path):
    plan = plan_training(tiny_config(tiny_model), tmp_path / "run")
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["checkpoints"] == [0, 2, 4]
    assert data["config"]["optimizer"]["lr"] == 1e-3
