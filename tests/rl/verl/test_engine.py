"""The engine around a program that keeps verl's files: what is trained on, kept, resumed and told.

`small_trainer` moves its weights by a rule that can be done by hand, and the run is done by hand here.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ckptlin.checkpoints import discover
from ckptlin.errors import CheckpointError, InputError, MissingExtraError, SelectionError, TrainingStoppedError
from ckptlin.problems import load_problems
from ckptlin.rl import trainer
from ckptlin.rl.config import GuardConfig, OptimizerConfig, RlExtraConfig
from ckptlin.rl.config_file import config_to_yaml
from ckptlin.rl.data_order import data_order
from ckptlin.rl.step_log import read_log
from ckptlin.rl.trainer import train
from ckptlin.rl.verl.engine import VerlEngine

PROGRAM = Path(__file__).with_name("small_trainer.py")
LAUNCHED = re.compile(r"model (\S+) resume (\S+) rows (\d+)")


@pytest.fixture
def launch(monkeypatch):
    """Let the trainer launch `small_trainer` for verl; options of its command line can be given."""

    def use(*options):
        engine = VerlEngine(command=[sys.executable, str(PROGRAM), *options], poll_s=0.05)
        monkeypatch.setattr(trainer, "open_engine", lambda name, **_: engine)
        return engine

    use()
    return use


def by_hand(config, base, *, jumps=(), resets=()):
    """Weights of every checkpoint by virtual step: the rule of `small_trainer`, and two-point jumps.

    jumps: {real step: (virtual steps of the jump)}; resets: real steps after which the momentum is forgotten.
    """
    from tests.rl.verl.small_trainer import update

    problems = load_problems(config.data.source, limit=config.data.limit)
    weights = {name: value.copy() for name, value in load_file(base / "model.safetensors").items()}
    found = {0: {name: value.copy() for name, value in weights.items()}}
    momentum, virtual, leg_start = np.float32(0), 0, found[0]
    order = data_order(len(problems), start=0, stop=config.steps * config.batch, seed=config.seed)
    for step in range(1, config.steps + 1):
        batch = order[(step - 1) * config.batch : step * config.batch]
        texts = [problems[i].problem for i in batch]
        momentum = update(weights, momentum, texts, config.optimizer.lr)
        virtual += 1
        found[virtual] = {name: value.copy() for name, value in weights.items()}
        if step in jumps:
            m, n = config.extra.m, jumps[step]
            virtual += n
            alpha = (m + n) / m
            for name, value in weights.items():
                start = leg_start[name].astype(np.float64)
                moved = (1 - alpha) * start + alpha * value.astype(np.float64)
                # As in the paper, tensors named norm stay where the leg ended.
                weights[name] = value if "norm" in name else moved.astype(np.float32)
            found[virtual] = leg_start = {name: value.copy() for name, value in weights.items()}
        if step in jumps or step in resets:
            momentum = np.float32(0)
    return found


def kept(run):
    with discover(run) as found:
        steps = found.steps
    return {step: load_file(run / f"checkpoint-{step}/model.safetensors") for step in steps}


def assert_same(ours, theirs, *, atol=0.0):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype == np.float32
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=atol, err_msg=name)


def launches(run):
    return LAUNCHED.findall((run / "verl.log").read_text())


def test_a_run_is_trained_on_its_prompts_and_kept(make_config, base_model, tmp_path, launch):
    config = make_config(base_model, steps=5)
    seen = []

    class Listener:
        def on_step(self, row):
            seen.append(row.step)

        def on_checkpoint(self, virtual_step, path):
            seen.append(path.name)

        def on_jump(self, jump, *, undone):
            raise AssertionError

    result = train(config, tmp_path / "run", listeners=[Listener()])
    assert result.state.step == result.state.virtual_step == 5
    assert result.state.updates == 5 * config.updates_per_step
    assert seen == [1, 2, "checkpoint-2", 3, 4, "checkpoint-4", 5, "checkpoint-5"]
    expected = by_hand(config, base_model)
    found = kept(tmp_path / "run")
    assert list(found) == [0, 2, 4, 5]
    for step, weights in found.items():
        assert_same(weights, expected[step])
    # One launch; and of verl's own files nothing is left but what the run goes on from.
    assert len(launches(tmp_path / "run")) == 1
    assert not (tmp_path / "run/verl").exists()
    resume = tmp_path / "run/resume/5-0"
    assert sorted(path.name for path in (resume / "verl/actor").iterdir()) == [
        "model_world_size_1_rank_0.pt",
        "optim_world_size_1_rank_0.pt",
    ]


def test_checkpoints_load_with_transformers_and_have_the_starts_tokenizer(
    make_config, base_model, tmp_path, launch
):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train(make_config(base_model, steps=1), tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoint-1")
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(tmp_path / "run/checkpoint-1").eos_token == "#"


def test_the_log_has_verls_figures(make_config, base_model, tmp_path, launch):
    train(make_config(base_model, steps=3), tmp_path / "run")
    rows = read_log(tmp_path / "run/log.csv")
    assert [row.step for row in rows] == [1, 2, 3]
    row = rows[2]
    assert (row.reward, row.length, row.entropy, row.clip_share) == (0.5, 10.0, 1.5, 0.01)
    assert (row.loss, row.grad_norm, row.lr) == (-0.1, 2.0, 1e-3)
    assert row.tokens == 3 * 10 * 4 * 4
    assert row.tokens_per_s == 10 * 4 * 4 / 2.0
    assert row.truncated == 0.0  # the longest answers of the batch had 12 of 16 tokens
    assert row.reward_std is row.kl_start is None


def test_training_goes_on_where_it_was(make_config, base_model, tmp_path, launch):
    launch("--fail-at", "4")
    config = make_config(base_model)
    with pytest.raises(TrainingStoppedError) as raised:
        train(config, tmp_path / "run")
    message = str(raised.value)
    assert message.startswith("step 4 was not trained: verl ended with status 3; the run stands at its last")
    assert message.endswith("the GPUs have caught fire")
    launch()
    result = train(config, tmp_path / "run")
    assert result.resumed_from == 2
    (_, first, _), (model, resumed, rows) = launches(tmp_path / "run")
    assert first == "None"
    # verl's number of the step that it goes on after, and the rows that are left.
    assert (Path(resumed.strip("'")).name, int(rows)) == ("global_step_2", 4 * config.batch)
    assert Path(model).name == "checkpoint-0"
    assert_same(kept(tmp_path / "run")[6], by_hand(config, base_model)[6])
    assert [row.step for row in read_log(tmp_path / "run/log.csv")] == [1, 2, 3, 4, 5, 6]


def test_resets_of_the_optimizer_start_anew_and_save_when_the_run_does(
    make_config, base_model, tmp_path, launch
):
    config = make_config(base_model, steps=7, optimizer=OptimizerConfig(lr=1e-3, reset_every=3))
    train(config, tmp_path / "run")
    expected = by_hand(config, base_model, resets=(3, 6))
    found = kept(tmp_path / "run")
    # Every second step, and the end of each stretch.
    assert list(found) == [0, 2, 3, 4, 6, 7]
    for step, weights in found.items():
        assert_same(weights, expected[step])
    assert [Path(model).name for model, _, _ in launches(tmp_path / "run")] == [
        "checkpoint-0", "checkpoint-3", "checkpoint-6"
    ]  # fmt: skip


def test_rl_extra_goes_on_from_each_jump_with_a_new_optimizer(make_config, base_model, tmp_path, launch):
    config = make_config(base_model, steps=6, extra=RlExtraConfig(m=2, n=3))
    result = train(config, tmp_path / "run")
    assert [(jump["from"], jump["to"]) for jump in result.jumps] == [(2, 5), (7, 10)]
    expected = by_hand(config, base_model, jumps={2: 3, 4: 3})
    found = kept(tmp_path / "run")
    assert list(found) == [0, 2, 5, 7, 10, 12]
    for step, weights in found.items():
        assert_same(weights, expected[step], atol=1e-6)
    starts = [(Path(model).name, resume) for model, resume, _ in launches(tmp_path / "run")]
    assert starts == [("checkpoint-0", "None"), ("checkpoint-5", "None"), ("checkpoint-10", "None")]


@pytest.mark.parametrize("is_worse", [False, True])
def test_the_guard_asks_verl(make_config, base_model, tmp_path, launch, is_worse):
    """The program's reward is a weight, which the jump moves upwards, or its negative."""
    launch(*(["--worse-when-higher"] if is_worse else []))
    guard = GuardConfig(enabled=True, num_problems=3, num_samples=2, z=1.0)
    extra = RlExtraConfig(m=2, n=2, guard=guard)
    config = make_config(base_model, steps=4, data__held_out="sums:test", extra=extra)
    result = train(config, tmp_path / "run")
    (jump,) = result.jumps_undone if is_worse else result.jumps
    moved = jump["guard"]["after"] - jump["guard"]["before"]
    assert moved == pytest.approx(jump["guard"]["difference"])
    assert (moved < 0) == is_worse
    assert jump["guard"]["tokens"] == 2 * 3 * 2 * 3
    # An undone jump leaves weights and optimizer as they were: training goes on from verl's own shards.
    expected = by_hand(config, base_model, jumps={} if is_worse else {2: 2})
    found = kept(tmp_path / "run")
    assert list(found) == ([0, 2, 4] if is_worse else [0, 2, 4, 6])
    assert_same(found[max(found)], expected[max(expected)], atol=0.0 if is_worse else 1e-6)
    (_, first, _), *_, (_, second, _) = launches(tmp_path / "run")
    assert first == "None"
    assert Path(second.strip("'")).name == ("global_step_0" if is_worse else "None")


def test_answers_of_a_model_come_back_by_problem(make_config, base_model, tmp_path, launch):
    engine = launch()
    problems = load_problems("sums:test", limit=3)
    weights = tmp_path / "weights"
    weights.symlink_to(base_model)
    sampled = engine.sample(make_config(base_model), weights, problems, num_samples=2, seed=5)
    weight = float(load_file(base_model / "model.safetensors")["model.embed_tokens.weight"][0, 0])
    np.testing.assert_allclose(sampled.rewards, weight + np.array([[0, 0.1], [1, 1.1], [2, 2.1]]))
    assert sampled.tokens == 3 * 2 * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["verl.log", "weights"]


def test_a_reward_that_cannot_be_given_stops_the_run(make_config, base_model, tmp_path, launch):
    launch("--ungraded-at", "3")
    with pytest.raises(
        TrainingStoppedError, match="step 3 was not trained: the reward function f returned None"
    ):
        train(make_config(base_model), tmp_path / "run")
    assert list(kept(tmp_path / "run")) == [0, 2]


def test_a_listener_that_stops_the_run_ends_the_program(make_config, base_model, tmp_path, launch):
    launch("--sleep", "0.05")

    class Stop:
        def on_step(self, row):
            if row.step == 3:
                raise TrainingStoppedError("enough")

        def on_checkpoint(self, virtual_step, path): ...

        def on_jump(self, jump, *, undone): ...

    with pytest.raises(TrainingStoppedError, match="enough"):
        train(make_config(base_model, steps=1000), tmp_path / "run", listeners=[Stop()])
    assert list(kept(tmp_path / "run")) == [0, 2]
    assert not programs_of(tmp_path)


def programs_of(path):
    """Processes that have a path in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                command = (entry / "cmdline").read_bytes()
                found += [entry.name] * (str(path).encode() in command and b"small_trainer" in command)
        except OSError:
            continue
    return found


def test_a_run_that_is_killed_goes_on_to_the_same_weights(make_config, base_model, tmp_path, launch):
    """SIGKILL to the process that trains, in the middle of verl's work; then the same command again."""
    config = make_config(base_model, steps=8, extra=RlExtraConfig(m=4, n=2))
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    ours = f"""
import sys
from pathlib import Path
from ckptlin.rl import trainer
from ckptlin.rl.config_file import load_config
from ckptlin.rl.verl.engine import VerlEngine
engine = VerlEngine(command=[sys.executable, {str(PROGRAM)!r}, "--sleep", "0.1"], poll_s=0.02)
trainer.open_engine = lambda name, **_: engine
config = load_config(Path({str(tmp_path / "config.yaml")!r}), with_extra=True)
trainer.train(config, Path({str(tmp_path / "run")!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", ours], start_new_session=True)
    log = tmp_path / "run/log.csv"
    deadline = time.monotonic() + 600
    while len(read_log(log)) < 6:  # in the second leg, two steps after its start
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while programs_of(tmp_path):
        assert time.monotonic() < deadline, "verl lives on"
        time.sleep(0.01)
    result = train(config, tmp_path / "run")
    assert result.resumed_from in (4, 6)
    expected = by_hand(config, base_model, jumps={4: 2})
    found = kept(tmp_path / "run")
    assert list(found) == [0, 2, 4, 6, 8, 10]
    for step, weights in found.items():
        assert_same(weights, expected[step], atol=1e-6)


def test_weights_that_verl_rounded_are_not_taken(make_config, base_model, tmp_path, launch):
    launch("--round")
    with pytest.raises(CheckpointError, match="is of type F16, but a run is kept in float32"):
        train(make_config(base_model), tmp_path / "run")
    assert list(kept(tmp_path / "run")) == [0]


def test_what_would_fail_on_the_cluster_is_told_before(make_config, base_model, launch):
    engine = launch()
    with pytest.raises(InputError, match="prompts are longer"):
        engine.check(make_config(base_model, sampling__max_prompt_tokens=9))
    with pytest.raises(InputError, match="there is no file"):
        engine.check(make_config(base_model, data__source="none.jsonl"))
    with pytest.raises(SelectionError, match="there is no grader 'best'"):
        engine.check(make_config(base_model, reward__grader="best"))
    engine.check(make_config(base_model))


def test_verl_itself_is_missed_by_name(make_config, base_model):
    pytest.importorskip("torch")
    if _is_there("verl"):
        pytest.skip("verl is installed here")
    with pytest.raises(
        MissingExtraError, match=r"verl is not installed; engine `verl` runs in verl's environment"
    ):
        VerlEngine().check(make_config(base_model))


def _is_there(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None
