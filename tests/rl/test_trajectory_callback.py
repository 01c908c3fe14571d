"""`TrajectoryCallback` in a trainer of transformers' own."""

import json
import logging
import shutil

import pytest
import torch
from transformers import Trainer, TrainingArguments

from ckptlin.rl.trajectory import read_r2
from ckptlin.rl.trajectory_callback import TrajectoryCallback
from ckptlin.store.store import TrajectoryStore
from ckptlin.store.writer import StoreWriter
from tests.rl_runs import save_tiny_model
from tests.runs import assert_holds
from tests.tiny_models import load_weights


class Counting(torch.utils.data.Dataset):
    """Rows that count upwards."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        row = (torch.arange(8) + index) % 12 + 2
        return {"input_ids": row, "labels": row}


def train(model, out_dir, callback, *, steps=8, resume=None, **options):
    """Train by transformers alone, saving every 2 steps."""
    from transformers import AutoModelForCausalLM

    arguments = TrainingArguments(
        output_dir=str(out_dir),
        max_steps=steps,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        **options,
    )
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=Counting(),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model")


def warnings_of(caplog):
    """What the callback has said that went wrong; transformers logs warnings of its own."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("ckptlin") and record.levelno >= logging.WARNING
    ]


def saved(out_dir, steps):
    return {step: load_weights(out_dir / f"checkpoint-{step}") for step in steps}


def test_the_store_holds_every_save_and_the_model_it_began_from(model, tmp_path, caplog):
    callback = TrajectoryCallback(tmp_path / "store", base=model)
    with caplog.at_level(logging.INFO, logger="ckptlin"):
        trainer = train(model, tmp_path / "out", callback)
    expected = {0: load_weights(model)} | saved(tmp_path / "out", (2, 4, 6, 8))
    assert_holds(TrajectoryStore(tmp_path / "store"), expected)
    assert [(f.first_step, f.step, f.num_checkpoints) for f in callback.found] == [
        (0, 4, 3),
        (0, 6, 4),
        (0, 8, 5),
    ]
    assert all(0 < f.median <= 1 and 0 < f.null_median < 1 for f in callback.found)
    assert read_r2(tmp_path / "out/r2.csv") == callback.found
    logged = [entry for entry in trainer.state.log_history if "r2_median" in entry]
    assert [(entry["step"], entry["r2_median"]) for entry in logged] == [
        (f.step, f.median) for f in callback.found
    ]
    assert [record.getMessage() for record in caplog.records if "R²" in record.getMessage()] == [
        f"step {f.step}: {f}" for f in callback.found
    ]
    # What transformers saves of it can be read again.
    state = json.loads((tmp_path / "out/checkpoint-8/trainer_state.json").read_text())
    assert [entry["r2_median"] for entry in state["log_history"] if "r2_median" in entry] == [
        f.median for f in callback.found[:-1]
    ]


def test_it_goes_on_after_a_resume_and_leaves_what_another_training_left(model, tmp_path, caplog):
    out_dir = tmp_path / "out"
    train(model, out_dir, TrajectoryCallback(tmp_path / "store"), steps=4)
    shutil.copytree(out_dir / "checkpoint-4", out_dir / "checkpoint-90")
    train(model, out_dir, TrajectoryCallback(tmp_path / "store"), resume=str(out_dir / "checkpoint-4"))
    assert_holds(TrajectoryStore(tmp_path / "store"), saved(out_dir, (2, 4, 6, 8)))
    assert warnings_of(caplog) == []


def test_checkpoints_that_rotation_deletes_stay_in_the_store(model, tmp_path):
    callback = TrajectoryCallback(tmp_path / "store")
    train(model, tmp_path / "out", callback, save_total_limit=1)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-8"]
    assert TrajectoryStore(tmp_path / "store").steps == (2, 4, 6, 8)
    assert [f.num_checkpoints for f in callback.found] == [3, 4]


def test_a_store_that_fails_does_not_end_the_training(model, tmp_path, caplog):
    store = tmp_path / "store"
    train(model, tmp_path / "first", TrajectoryCallback(store), steps=2)
    with StoreWriter(str(store), fresh=False):
        trainer = train(model, tmp_path / "out", TrajectoryCallback(store), steps=6)
    assert trainer.state.global_step == 6
    warned = warnings_of(caplog)
    # Step 2 is in it already, the same to the bit.
    assert [message.split(" could not be appended")[0] for message in warned] == [
        "checkpoint 4",
        "checkpoint 6",
    ]


def test_a_store_of_another_training_is_told_once(model, tmp_path, caplog):
    train(model, tmp_path / "first", TrajectoryCallback(tmp_path / "store"), steps=4)
    before = TrajectoryStore(tmp_path / "store").checkpoints
    train(model, tmp_path / "out", TrajectoryCallback(tmp_path / "store"), steps=4, seed=5)
    (warned,) = warnings_of(caplog)
    assert "with other content" in warned
    assert TrajectoryStore(tmp_path / "store").checkpoints == before


def test_a_mistake_in_the_program_ends_the_training(model, tmp_path):
    with pytest.raises(TypeError):
        train(model, tmp_path / "out", TrajectoryCallback(5), steps=2)
