"""What is handed to verl, held against verl 0.9.1 itself; `make test-verl` has an environment for it.

Nothing here needs a GPU: settings are composed and validated, names looked up in verl's registries, and the
pieces that are called from both sides are called.
"""

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import InputError, SelectionError
from ckptlin.problems import load_problems
from ckptlin.rl.algorithms import ALGORITHMS
from ckptlin.rl.config import AlgorithmConfig, OptimizerConfig, RewardConfig, VerlConfig
from ckptlin.rl.state import TrainState
from ckptlin.rl.trl.model import load_tokenizer
from ckptlin.rl.verl.hydra import hydra_value
from ckptlin.rl.verl.metrics import MetricsFile, step_row
from ckptlin.rl.verl.overrides import sampling_overrides, verl_overrides
from ckptlin.rl.verl.process import LoggedProcess
from ckptlin.rl.verl.prompts import chat_template_of, write_prompts
from ckptlin.rl.verl.reward import RewardManager, write_grader

pytestmark = [
    pytest.mark.verl,
    pytest.mark.skipif(
        importlib.util.find_spec("verl") is None,
        reason="verl wants another version of transformers, and so an environment of its own: make test-verl",
    ),
    # verl, Ray and Hydra warn of what they deprecate in one another.
    pytest.mark.filterwarnings("ignore"),
]

ACTOR = "actor_rollout_ref.actor"
POLICIES = sorted(name for name, algorithm in ALGORITHMS.items() if not algorithm.is_supervised)


def composed(overrides):
    """verl's settings with overrides, as its ``main_ppo`` gets them."""
    import verl
    from hydra import compose, initialize_config_dir

    directory = Path(verl.__file__).parent / "trainer/config"
    with initialize_config_dir(config_dir=str(directory), version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


@pytest.fixture
def told(base_model, tmp_path):
    """The overrides of a configuration, with a model and files that are there."""

    def make(config, **changes):
        arguments = {
            "train_files": [tmp_path / "prompts.parquet"],
            "out_dir": tmp_path / "checkpoints",
            "total_steps": 6,
            "model_path": base_model,
        }
        return verl_overrides(config, **(arguments | changes))

    return make


def validated(settings):
    """Let verl itself look at its settings, as ``main_ppo`` does before anything starts."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    validate_config(
        config=settings, use_reference_policy=need_reference_policy(settings), use_critic=need_critic(settings)
    )


@pytest.mark.parametrize("name", POLICIES)
def test_settings_of_every_algorithm_are_verls_own(make_config, told, name):
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn

    # Every key must be there already: Hydra refuses one that is not, unless it is added by `+`.
    overrides = told(make_config(algorithm=AlgorithmConfig(name)))
    assert not [override for override in overrides if override.startswith(("+", "~"))]
    settings = composed(overrides)
    get_adv_estimator_fn(settings.algorithm.adv_estimator)
    get_policy_loss_fn(settings.actor_rollout_ref.actor.policy_loss.loss_mode)
    validated(settings)


CONFIGURATIONS = {
    "sgd": {"optimizer": OptimizerConfig("sgd", lr=0.1, momentum=0.9)},
    "cosine": {"optimizer": OptimizerConfig(schedule="cosine", warmup_steps=2)},
    "unlimited gradients": {"optimizer": OptimizerConfig(max_grad_norm=0)},
    "kl": {"algorithm": AlgorithmConfig(kl_coef=0.01, entropy_coef=0.001)},
    "cluster": {"batch": 64, "mini_batch": 32, "verl": VerlConfig(nodes=2, gpus_per_node=4, tensor_parallel=2)},
    "further": {"verl": VerlConfig(overrides={f"{ACTOR}.fsdp_config.param_offload": True})},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_other_settings_are_verls_own(make_config, told, name):
    validated(composed(told(make_config(**CONFIGURATIONS[name]))))


def test_settings_to_go_on_with_and_to_answer_with(make_config, told, tmp_path, base_model):
    resumed = composed(told(make_config(), resume_from=tmp_path / "global_step_4", rollout_seed=7))
    validated(resumed)
    assert resumed.trainer.resume_from_path == str(tmp_path / "global_step_4")
    answers = sampling_overrides(
        make_config(),
        files=[tmp_path / "a.parquet"],
        out_dir=tmp_path / "c",
        answers_dir=tmp_path / "answers",
        model_path=base_model,
        num_samples=8,
        seed=3,
        chat_template="{{ x }}",
    )
    settings = composed(answers)
    validated(settings)
    assert settings.actor_rollout_ref.rollout.val_kwargs.n == 8
    assert settings.actor_rollout_ref.model.custom_chat_template == "{{ x }}"


def test_numbers_arrive_as_numbers(make_config, told):
    config = make_config(optimizer=OptimizerConfig(lr=1e-6, beta2=0.95, max_grad_norm=0), seed=3)
    settings = composed(told(config)).actor_rollout_ref
    optimizer = settings.actor.optim
    assert (optimizer.lr, type(optimizer.lr)) == (1e-6, float)
    assert list(optimizer.betas) == [0.9, 0.95]
    assert dict(optimizer.override_optimizer_config) == {"eps": 1e-8}
    assert optimizer.clip_grad == float("inf")
    assert (settings.actor.ppo_mini_batch_size, settings.rollout.n, settings.actor.fsdp_config.seed) == (
        2,
        4,
        3,
    )


def test_hydra_composes_what_verl_does_not_know_and_the_configuration_refuses_it(make_config, told):
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    settings = composed([*told(make_config()), "algorithm.adv_estimator=banana"])
    with pytest.raises(ValueError, match="banana"):
        get_adv_estimator_fn(settings.algorithm.adv_estimator)
    with pytest.raises(SelectionError, match="no algorithm `banana`"):
        make_config(algorithm=AlgorithmConfig("banana"))
    with pytest.raises(InputError, match="decides what is trained"):
        told(make_config(verl=VerlConfig(overrides={"algorithm.adv_estimator": "banana"})))


def test_a_key_that_is_not_there_is_refused_by_hydra(make_config, told):
    from hydra.errors import ConfigCompositionException

    further = VerlConfig(overrides={f"{ACTOR}.fsdp_config.offload_everything": True})
    with pytest.raises(ConfigCompositionException, match="offload_everything"):
        composed(told(make_config(verl=further)))


def test_what_is_saved_and_restored_are_names_that_verl_looks_for(make_config, told):
    from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager

    checkpoint = composed(told(make_config())).actor_rollout_ref.actor.checkpoint
    manager = SimpleNamespace(
        checkpoint_save_contents=list(checkpoint.save_contents),
        checkpoint_load_contents=list(checkpoint.load_contents),
    )
    for part in ("model", "optimizer", "extra", "hf_model"):
        assert getattr(BaseCheckpointManager, f"should_save_{part}").fget(manager), part
    for part in ("model", "optimizer", "extra"):
        assert getattr(BaseCheckpointManager, f"should_load_{part}").fget(manager), part


TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.sampled_from(" \\'\"\n{}[],:=")
).filter(lambda text: "${" not in text)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda item: st.lists(item, max_size=4),
)


@given(VALUES)
def test_hydra_reads_every_value_back(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString

    def plain(read):
        if isinstance(read, QuotedString):
            return read.text
        return [plain(item) for item in read] if isinstance(read, list) else read

    override = OverridesParser.create().parse_override(f"a.b={hydra_value(value)}")
    read = plain(override._value)
    assert read == value
    assert type(read) is type(value)


def test_the_reward_manager_is_found_and_grades_verls_rows(make_config, told, base_model, tmp_path):
    import torch
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
    from verl.trainer.ppo.reward import load_reward_manager, resolve_reward_manager_cls

    settings = composed(told(make_config()))
    assert resolve_reward_manager_cls(settings) is RewardManager
    # It stands in for verl's own base class as far as that asks for anything.
    assert all(callable(getattr(RewardManager, name)) for name in RewardManagerBase.__abstractmethods__)
    write_grader(tmp_path, RewardConfig("exact"))
    tokenizer = load_tokenizer(base_model)
    manager = load_reward_manager(settings, tokenizer, reward_router_address=None, reward_model_tokenizer=None)
    (problem,) = problems = load_problems("sums:train", limit=1)
    write_prompts(tmp_path / "prompts.parquet", make_config(), problems, [0])
    row = dataset(settings, tokenizer)[0]

    def reward(text):
        # As an agent loop packs a finished answer: verl/experimental/agent_loop/agent_loop.py, _compute_score.
        prompt = torch.tensor(tokenizer(problem.problem)["input_ids"])
        answer = torch.tensor(tokenizer(text)["input_ids"])
        ids = torch.cat([prompt, answer])
        tensors = {
            "prompts": prompt,
            "responses": answer,
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        batch = TensorDict({name: tensor[None] for name, tensor in tensors.items()}, batch_size=1)
        fields = {name: np.array([value]) for name, value in row.items()}
        data = DataProto(batch=batch, non_tensor_batch=fields | {"__num_turns__": np.array([2])})
        return asyncio.run(manager.run_single(data))

    assert reward(f"{problem.answer}#")["reward_score"] == 1.0
    assert reward("1#") == {
        "reward_score": 0.0,
        "reward_extra_info": {"acc": 0.0, "index": 0, "tokens": 2, "finished": 1.0},
    }


def dataset(settings, tokenizer):
    from verl.trainer.ppo.utils import create_rl_dataset

    return create_rl_dataset(settings.data.train_files, settings.data, tokenizer, None)


def test_verl_reads_the_prompts_in_their_order(make_config, told, base_model, tmp_path):
    from torch.utils.data import SequentialSampler
    from verl.trainer.ppo.utils import create_rl_sampler

    problems = load_problems("sums:train", limit=5)
    order = [3, 0, 4, 4, 1]
    write_prompts(tmp_path / "prompts.parquet", make_config(), problems, order)
    settings = composed(told(make_config()))
    rows = dataset(settings, load_tokenizer(base_model))
    sampler = create_rl_sampler(settings.data, rows)
    assert isinstance(sampler, SequentialSampler)
    assert [rows[i]["raw_prompt"][0]["content"] for i in sampler] == [problems[i].problem for i in order]
    assert [rows[i]["index"] for i in sampler] == order


def test_verl_makes_the_same_tokens_of_a_prompt(make_config, base_model):
    from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder

    tokenizer = load_tokenizer(base_model)
    tokenizer.chat_template = chat_template_of(make_config(), tokenizer)
    ids = ContinuousTokenBuilder(tokenizer).build_initial_tokens([{"role": "user", "content": "3+7="}])
    assert list(ids) == tokenizer("3+7=")["input_ids"]


def test_figures_are_where_they_are_looked_for(make_config, told, tmp_path):
    from verl.utils.tracking import Tracking

    settings = composed(told(make_config())).trainer
    logger = Tracking(settings.project_name, settings.experiment_name, list(settings.logger), config={})
    logger.log({"a": np.float32(1.5), "b": float("nan")}, step=1)
    assert list(MetricsFile(tmp_path / "metrics.jsonl").read()) == [(1, {"a": 1.5, "b": None})]


def plain_loss(algorithm, old, new, advantages, mask, *, longest):
    """The loss of an answer's tokens by its definition, in float64, token by token."""
    low, high = algorithm.clip_low, algorithm.clip_high
    per_answer = []
    for row in range(len(old)):
        tokens = [t for t in range(old.shape[1]) if mask[row, t]]
        losses = []
        for t in tokens:
            if algorithm.ratio == "sequence":
                ratio = np.exp(np.mean([new[row, u] - old[row, u] for u in tokens]))
            else:
                ratio = np.exp(new[row, t] - old[row, t])
            gain = advantages[row, t]
            losses.append(-min(ratio * gain, np.clip(ratio, 1 - low, 1 + high) * gain))
        per_answer.append(losses)
    if algorithm.loss_mean == "token":
        return np.mean(np.concatenate(per_answer))
    if algorithm.loss_mean == "constant-length":
        return np.mean([np.sum(losses) / longest for losses in per_answer])
    return np.mean([np.mean(losses) for losses in per_answer])


@pytest.mark.parametrize("name", POLICIES)
def test_verls_loss_with_these_settings_is_the_algorithms(make_config, told, name):
    import torch
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    config = make_config(algorithm=AlgorithmConfig(name))
    actor = omega_conf_to_dataclass(composed(told(config)).actor_rollout_ref.actor)
    actor.global_batch_info["loss_scale_factor"] = actor.loss_scale_factor
    random = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    old = random.normal(-1, 0.3, mask.shape)
    new = old + random.normal(0, 0.5, mask.shape)  # some ratios are beyond 3, where verl's dual clip would bind
    new[0, 0] = old[0, 0] + 1.5
    advantages = np.array([[-1.0], [0.7], [1.3]]) * mask
    loss, _ = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=torch.tensor(old),
        log_prob=torch.tensor(new),
        advantages=torch.tensor(advantages),
        response_mask=torch.tensor(mask),
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
    )
    expected = plain_loss(ALGORITHMS[name], old, new, advantages, mask, longest=16)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", POLICIES)
def test_verls_advantages_with_these_settings(make_config, told, name):
    """Over answers of one length each: over batches of several, verl weights answers by their length."""
    import torch
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn
    from verl.utils.config import omega_conf_to_dataclass

    algorithm = composed(told(make_config(algorithm=AlgorithmConfig(name)))).algorithm
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]])  # two prompts, four answers
    token_rewards = torch.zeros(8, 3, dtype=torch.float64)
    token_rewards[:, -1] = torch.tensor(rewards.ravel())
    arguments = {
        "token_level_rewards": token_rewards,
        "response_mask": torch.ones(8, 3, dtype=torch.float64),
        "config": omega_conf_to_dataclass(algorithm),
    }
    if algorithm.adv_estimator != "reinforce_plus_plus":
        arguments["index"] = np.repeat(["a", "b"], 4)
    if algorithm.adv_estimator == "grpo":
        arguments["norm_adv_by_std_in_grpo"] = algorithm.norm_adv_by_std_in_grpo
    found, _ = get_adv_estimator_fn(algorithm.adv_estimator)(**arguments)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    expected = {
        "group": lambda: centred / rewards.std(axis=1, ddof=1, keepdims=True),
        "group-mean": lambda: centred,
        # Every answer's advantage stands at each of its three tokens.
        "group-mean-over-batch-deviation": lambda: centred / np.repeat(centred, 3).std(ddof=1),
        "batch": lambda: (rewards - rewards.mean()) / np.repeat(rewards, 3).std(ddof=1),
    }[ALGORITHMS[name].advantage]()
    np.testing.assert_allclose(found.numpy(), np.repeat(expected.reshape(8, 1), 3, axis=1), rtol=1e-4)


def test_a_problem_survives_the_way_through_verl(make_config, told, base_model, tmp_path):
    from ckptlin.problems import Problem
    from ckptlin.rl.verl.prompts import problem_of

    problem = Problem("1+1=", "2", None, "p", {"tests": [{"a": 1}], "none": None})
    write_prompts(tmp_path / "prompts.parquet", make_config(), [problem], [0])
    (row,) = dataset(composed(told(make_config())), load_tokenizer(base_model))
    assert problem_of(json.loads(json.dumps(row["extra_info"]))) == problem


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_verl_saves_is_taken_and_what_is_kept_of_it_verl_restores(
    make_config, base_model, tmp_path, world_size
):
    """Shards of FSDP by verl's own checkpoint manager, on CPUs: saved, taken into a run, and gone on from."""
    from safetensors.numpy import load_file

    from ckptlin.rl.run_directory import open_run
    from ckptlin.rl.step_log import Listeners
    from ckptlin.rl.verl.engine import VerlEngine
    from ckptlin.rl.verl.stretch import SHARDS_NAME, Stretch
    from tests.rl.verl.small_trainer import figures_of

    def run_sharded(mode, actor, weights):
        rendezvous = tmp_path / f"rendezvous-{mode}"
        program = [sys.executable, str(Path(__file__).with_name("sharded.py")), mode, str(base_model)]
        processes = [
            subprocess.Popen([*program, str(actor), str(weights), str(rank), str(world_size), str(rendezvous)])
            for rank in range(world_size)
        ]
        assert [process.wait(300) for process in processes] == [0] * world_size

    config = make_config(base_model, save_every=2, steps=2)
    with open_run(tmp_path / "run", config, versions={}) as run:
        state = VerlEngine().start(config, run)
        saved = run.path / "verl/checkpoints"
        run_sharded("save", saved / "global_step_2/actor", tmp_path / "never stopped")
        (saved / "global_step_2/data.pt").touch()
        stretch = Stretch(config, state, 2, run=run, listener=Listeners([]), saved=saved, first=0)
        stretch.take_step(1, figures_of(1e-2))
        stretch.take_step(2, figures_of(1e-2))
        checkpoint = load_file(run.checkpoint(2) / "model.safetensors")
        state = run.latest()
    assert not list(saved.iterdir())
    expected = load_file(f"{tmp_path}/never stopped.saved")
    assert {name: value.dtype for name, value in checkpoint.items()} == dict.fromkeys(checkpoint, np.float32)
    for name, value in expected.items():
        if name in checkpoint:
            np.testing.assert_array_equal(checkpoint[name], value)
    assert expected.keys() - checkpoint.keys() <= {"lm_head.weight"}  # tied to the embedding
    run_sharded("resume", state.path / SHARDS_NAME / "actor", tmp_path / "resumed")
    whole, resumed = load_file(tmp_path / "never stopped"), load_file(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value)


def test_figures_have_the_names_that_are_looked_for(make_config):
    """Those of the batch are computed by verl here; those of its workers are read from its source."""
    import inspect

    import torch
    import verl.workers.engine_workers
    from verl import DataProto
    from verl.trainer.ppo import metric_utils
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.trainer.ppo.v1 import trainer_base

    names = ("token_level_scores", "token_level_rewards", "advantages", "returns", "prompts", "responses")
    tensors = {name: torch.ones(2, 3) for name in names} | {
        "response_mask": torch.ones(2, 3),
        "attention_mask": torch.ones(2, 6),
    }
    figures = metric_utils.compute_data_metrics(DataProto.from_single_dict(tensors), use_critic=False)
    batch = DataProto(meta_info={"global_token_num": [6, 6]})
    figures |= metric_utils.compute_throughout_metrics(batch, {"step": 2.0}, n_gpus=1)
    figures |= dict.fromkeys(re.findall(r'"(actor/entropy)":', inspect.getsource(trainer_base.PPOTrainer)))
    figures |= dict.fromkeys(
        re.findall(r'"(actor/pg_clipfrac)":', inspect.getsource(compute_policy_loss_vanilla))
    )
    worker = inspect.getsource(verl.workers.engine_workers)
    assert 'rename_dict(output["metrics"], "actor/")' in inspect.getsource(trainer_base.PPOTrainer)
    figures |= {f"actor/{name}": 0.0 for name in re.findall(r'final_metrics\["(\w+)"\] =', worker)}
    figures = {name: 0.0 if value is None else value for name, value in figures.items()}
    row = step_row(make_config(), TrainState(Path(), step=1), figures, tokens_per_s=1.0)
    assert row.reward == 3.0
    assert row.length == 3.0
    assert figures["perf/time_per_step"] == 2.0


def test_a_resume_point_is_read_as_the_step_of_its_name_and_without_a_position_in_the_data(
    make_config, told, tmp_path
):
    """verl's own way of going on, with workers that note down what they are to load."""
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    shards = tmp_path / "run/resume/30-0/verl"
    (shards / "actor").mkdir(parents=True)
    link = tmp_path / "global_step_4"
    link.symlink_to(shards)
    loaded = []
    workers = SimpleNamespace(load_checkpoint=lambda **arguments: loaded.append(arguments["local_path"]))
    loader = SimpleNamespace(load_state_dict=loaded.append)
    trainer = SimpleNamespace(
        config=composed(told(make_config(), resume_from=link)),
        actor_rollout_wg=workers,
        train_dataloader=loader,
        use_critic=False,
        trainer_mode="sync",
    )
    PPOTrainerSync._load_checkpoint(trainer)
    assert trainer.global_steps == 4
    assert loaded == [f"{link}/actor"]


def processes_with(text):
    """Process numbers of all living processes that have a text in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_ray_that_was_started_ends_with_all_its_daemons(tmp_path):
    # Ray's sockets have no room for the long names of pytest's directories.
    with tempfile.TemporaryDirectory(prefix="ray-") as directory:
        program = f"""
import pathlib, time, ray
ray.init(num_cpus=1, include_dashboard=False, _temp_dir={directory!r})
pathlib.Path({str(tmp_path / "up")!r}).touch()
time.sleep(600)
"""
        command = [sys.executable, "-c", program]
        with LoggedProcess(command, log=tmp_path / "log", environment=os.environ) as process:
            while not (tmp_path / "up").exists():
                assert process.wait(0.1) is None, process.last_lines(20)
            daemons = processes_with(directory)
            # The supervisor, the driver, and at least Ray's control store and its raylet.
            assert len(daemons) >= 4
        assert not processes_with(directory)
