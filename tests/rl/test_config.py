"""Configurations: what YAML and options make of them, and what is refused before anything is loaded."""

import json
import math
import re
from dataclasses import fields

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import InputError, SelectionError
from ckptlin.rl.algorithms import ALGORITHMS, get_algorithm
from ckptlin.rl.config import (
    AlgorithmConfig,
    DataConfig,
    GuardConfig,
    LogConfig,
    OptimizerConfig,
    RewardConfig,
    RlExtraConfig,
    SamplingConfig,
    StopConfig,
    TrainConfig,
    VerlConfig,
)
from ckptlin.rl.config_file import config_from_dict, config_to_yaml, load_config

NEEDED = ("model=./base", "data.source=sums:train")

names = st.text(min_size=1, max_size=8)
counts = st.integers(1, 10**6)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
not_negative = st.floats(min_value=0, allow_infinity=False)
below_one = st.floats(0, 1, exclude_max=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def sampling(backend: str):
    return st.builds(
        SamplingConfig,
        rollouts=st.integers(2, 64),
        temperature=positive,
        top_p=st.floats(0, 1, exclude_min=True),
        max_prompt_tokens=counts,
        max_completion_tokens=counts,
        backend=st.just(backend),
        server_url=names if backend == "vllm-server" else st.none(),
        gpu_memory=st.floats(0, 1, exclude_min=True),
    )


@st.composite
def configurations(draw: st.DrawFn) -> TrainConfig:
    """Any valid configuration."""
    mini_batch, num_updates = (draw(st.integers(1, 16)) for _ in range(2))
    samples = draw(st.sampled_from(SamplingConfig.BACKENDS).flatmap(sampling))
    algorithm = draw(
        st.builds(
            AlgorithmConfig,
            name=st.sampled_from(sorted(ALGORITHMS)),
            clip_low=st.none() | positive,
            clip_high=st.none() | positive,
            kl_coef=not_negative,
            entropy_coef=not_negative,
        )
    )
    guard = st.builds(GuardConfig, enabled=st.booleans(), num_problems=st.integers(2, 99), z=not_negative)
    extra = draw(
        st.none()
        | st.builds(
            RlExtraConfig,
            m=st.integers(3, 99),
            n=st.integers(0, 99),
            method=st.sampled_from(["auto", "two-point", "ols", "relex:rank=1", "damped"]),
            optimizer=st.sampled_from(RlExtraConfig.OPTIMIZER),
            guard=guard,
        )
    )
    rows = mini_batch * (1 if algorithm.spec.is_supervised else samples.rollouts)
    return TrainConfig(
        model=draw(names),
        steps=draw(counts),
        batch=mini_batch * num_updates,
        mini_batch=mini_batch,
        passes=draw(st.integers(1, 4)),
        micro_batch=draw(st.sampled_from([None, *(n for n in range(1, rows + 1) if rows % n == 0)])),
        save_every=draw(counts) if extra is None else 1,
        seed=draw(st.integers(0, 2**31)),
        engine=draw(st.sampled_from(TrainConfig.ENGINES)),
        device=draw(st.sampled_from(TrainConfig.DEVICES)),
        data=DataConfig(draw(names), held_out=draw(names), template=draw(st.text()), chat=draw(st.booleans())),
        reward=draw(
            st.builds(
                RewardConfig, grader=names, parameters=st.dictionaries(st.text(), json_values, max_size=3)
            )
        ),
        algorithm=algorithm,
        sampling=samples,
        optimizer=draw(
            st.builds(
                OptimizerConfig,
                name=st.sampled_from(OptimizerConfig.NAMES),
                lr=positive,
                beta1=below_one,
                beta2=below_one,
                epsilon=positive,
                momentum=below_one,
                weight_decay=not_negative,
                max_grad_norm=not_negative,
                schedule=st.sampled_from(OptimizerConfig.SCHEDULES),
                warmup_steps=st.integers(0, 99),
                reset_every=st.just(0) if extra else st.integers(0, 99),
            )
        ),
        extra=extra,
        log=draw(st.builds(LogConfig, kl_every=st.none() | st.integers(0, 9), store=st.none() | names)),
        stop=draw(st.builds(StopConfig, window=counts, collapse=below_one)),
        verl=draw(
            st.builds(
                VerlConfig,
                nodes=st.integers(1, 4),
                gpus_per_node=st.integers(1, 8),
                overrides=st.dictionaries(st.text(), json_values, max_size=3),
            )
        ),
    )


@given(configurations())
def test_a_configuration_survives_yaml_and_json(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(path, with_extra=config.extra is not None) == config
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.differences(config_from_dict(config.to_dict())) == []


def leaves(kind=TrainConfig, prefix=""):
    """Give every setting by its dotted name, and its value where nothing is said of it."""
    config = load_config(overrides=NEEDED, with_extra=True)

    def walk(data, prefix):
        for key, value in data.items():
            if isinstance(value, dict) and key not in ("parameters", "overrides"):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(config.to_dict(), ""))


LEAVES = leaves()


@given(
    st.sampled_from(sorted(LEAVES)),
    json_values | st.dates() | st.sampled_from([math.nan, math.inf, -math.inf, 10**400]),
)
def test_whatever_stands_in_a_file_makes_a_configuration_or_one_sentence(tmp_path_factory, name, value):
    data = load_config(overrides=NEEDED, with_extra=True).to_dict()
    *sections, key = name.split(".")
    inner = data
    for section in sections:
        inner = inner[section]
    inner[key] = value
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        config = load_config(path, with_extra=True)
    except InputError as error:
        refusal = str(error)
    else:
        assert config_from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
        return
    assert key in refusal or name == "algorithm.name"
    assert "\n" not in refusal or "\n" in str(value)


def test_the_defaults_are_those_of_the_paper():
    config = load_config(overrides=NEEDED)
    assert (config.batch, config.mini_batch, config.sampling.rollouts, config.sampling.temperature) == (
        128,
        64,
        16,
        1.0,
    )
    assert (config.optimizer.name, config.optimizer.lr) == ("adamw", 1e-6)
    assert config.algorithm.name == "grpo"
    assert config.algorithm.clip_range == (0.2, 0.28)
    assert (config.algorithm.kl_coef, config.algorithm.entropy_coef) == (0.0, 0.0)
    assert config.updates_per_step == 2
    assert config.extra is None


@pytest.mark.parametrize("text", ["1e-6", "1E-06", "0.000001", "1.0e-6", '"1e-6"'])
def test_a_number_without_a_point_is_a_number(text):
    """YAML 1.1 takes 1e-6 for a text."""
    assert load_config(overrides=[*NEEDED, f"optimizer.lr={text}"]).optimizer.lr == 1e-6


def test_a_whole_number_may_stand_for_a_float_and_a_number_for_a_name():
    config = load_config(overrides=[*NEEDED, "sampling.temperature=1", "model=123"])
    assert config.sampling.temperature == 1.0
    assert isinstance(config.sampling.temperature, float)
    assert config.model == "123"


def test_options_come_after_the_file_and_settings_between_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: a\nsteps: 1\nseed: 1\ndata: {source: 'sums'}\noptimizer: {lr: 1e-5, name: sgd}\n")
    config = load_config(
        path, settings={"steps": 2, "optimizer.lr": 1e-4, "model": "a: #b"}, overrides=["steps=3"]
    )
    assert (config.model, config.steps, config.seed) == ("a: #b", 3, 1)
    assert (config.optimizer.lr, config.optimizer.name) == (1e-4, "sgd")


def test_extra_is_for_rl_extra_alone(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: a\ndata: {source: sums}\nsave_every: 5\nextra: {m: 10, n: 20}\n")
    assert load_config(path).extra is None
    assert load_config(path, with_extra=True).extra == RlExtraConfig(m=10, n=20)
    assert load_config(overrides=NEEDED, with_extra=True).extra == RlExtraConfig()


def test_the_parameters_of_a_grader_are_kept_as_they_are():
    config = load_config(overrides=[*NEEDED, "reward.parameters.boxed=true", "reward.parameters.limit=[1, a]"])
    assert config.reward.parameters == {"boxed": True, "limit": [1, "a"]}


def refused(*overrides, with_extra=False):
    with pytest.raises(InputError) as raised:
        load_config(overrides=[*NEEDED, *overrides], with_extra=with_extra)
    return str(raised.value)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optimzer.lr=1", "did you mean `optimizer`?"),
        ("optimizer.learning_rate=1", "no setting `optimizer.learning_rate`; there are name, lr, beta1"),
        ("sampling.rollout=8", "did you mean `sampling.rollouts`?"),
        ("extra.guard.enable=true", "did you mean `extra.guard.enabled`?"),
        ("steps=ten", "steps is 'ten', but must be of type int"),
        ("steps=1.5", "steps is 1.5, but must be of type int"),
        ("steps=true", "steps is True, but must be of type int"),
        ("optimizer.lr=fast", "optimizer.lr is 'fast', but must be of type float"),
        ("optimizer.lr=nan", "optimizer.lr is nan"),
        ("optimizer.lr=.inf", "optimizer.lr is inf, but must be a finite number"),
        ("sampling.temperature=1" + 400 * "0", "must be of type float"),
        ("data.chat=1", "data.chat is 1, but must be of type bool"),
        ("model=[a]", "model is ['a'], but must be of type str"),
        ("model=true", "model is True, but must be of type str"),
        ("optimizer=adamw", "optimizer is 'adamw', but is a section with settings of its own"),
        ("reward.parameters={when: 2026-01-01}", "reward.parameters is {'when'"),
        ("reward.parameters={1: a}", "reward.parameters is {1: 'a'}"),
        ("verl.overrides={when: 2026-01-01}", "verl.overrides is {'when'"),
        ("verl.nodes=0", "verl.nodes is 0"),
        ("verl.tensor_parallel=3", "must divide the 1 GPUs"),
        ("steps", "`steps` is no setting; write it as key=value"),
        ("steps.x=1", "steps is"),
        ("model=", "model is None"),
        ("model=''", "model is ''"),
        ("data.source=''", "data.source is ''"),
        ("data.limit=0", "data.limit is 0"),
        ("steps=0", "steps is 0, but must be at least 1"),
        ("save_every=0", "save_every is 0"),
        ("passes=0", "passes is 0"),
        ("seed=-1", "seed is -1"),
        ("batch=100", "batch (100), the prompts of a step, must be a multiple of mini_batch (64)"),
        ("micro_batch=7", "micro_batch (7) must divide a mini-batch, 64 prompts × 16 rollouts = 1024"),
        ("sampling.rollouts=1", "compares the answers to a prompt with one another and needs at least 2"),
        ("sampling.rollouts=0", "sampling.rollouts is 0"),
        ("sampling.temperature=0", "sampling.temperature is 0.0, but must be positive"),
        ("sampling.top_p=1.5", "sampling.top_p is 1.5"),
        ("sampling.backend=sglang", "one of generate, vllm-colocate, vllm-server"),
        ("sampling.backend=vllm-server", "sampling.server_url and sampling.backend"),
        ("sampling.server_url=http://a", "sampling.server_url and sampling.backend"),
        ("engine=deepspeed", "engine is 'deepspeed', but must be one of trl, verl"),
        ("device=tpu", "device is 'tpu'"),
        ("optimizer.name=lion", "one of adamw, sgd"),
        ("optimizer.lr=0", "optimizer.lr is 0.0, but must be positive"),
        ("optimizer.beta2=1", "optimizer.beta2 is 1.0, but must be within [0, 1)"),
        ("algorithm.name=ppo", "no algorithm `ppo`; there are grpo, dapo-loss"),
        ("algorithm.name=dapo", "`dapo` needs dynamic sampling"),
        ("algorithm.clip_low=0", "algorithm.clip_low is 0.0"),
        ("stop.collapse=1", "stop.collapse is 1.0"),
        ("stop.window=0", "stop.window is 0"),
        ("reward.grader=''", "reward.grader is ''"),
    ],
)
def test_what_is_wrong_is_named(setting, expected):
    assert expected in refused(setting, with_extra=setting.startswith("extra"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["extra.m=0"], "extra.m is 0, but must be at least 1"),
        (["extra.m=-3"], "extra.m is -3"),
        (["extra.n=-1"], "extra.n is -1, but must be 0 or more"),
        (["extra.optimizer=forget"], "one of reset, keep"),
        (["extra.method=three-point"], "three-point"),
        (["extra.method=polynomial:degree=x"], "polynomial"),
        (["extra.guard.enabled=true"], "name them by data.held_out"),
        (["extra.guard.enabled=true", "data.held_out=''"], "data.held_out is ''"),
        (["extra.guard.num_problems=1"], "at least 2"),
        (["optimizer.reset_every=5"], "RL-Extra has extra.optimizer"),
        (["extra.method=ols", "extra.m=10", "save_every=50", "extra.method=relex:rank=3"], "lower save_every"),
        (["extra.method=auto", "extra.m=20", "save_every=10"], "`auto` needs 4 checkpoints, but a leg of 20"),
    ],
)
def test_what_is_wrong_with_rl_extra_is_named(settings, expected):
    assert expected in refused(*settings, with_extra=True)


def test_a_leg_of_few_checkpoints_is_no_matter_where_nothing_jumps():
    assert load_config(overrides=[*NEEDED, "extra.n=0", "extra.m=1"], with_extra=True).extra.n == 0


def test_supervised_training_needs_neither_rollouts_nor_groups():
    config = load_config(
        overrides=[*NEEDED, "algorithm.name=sft", "sampling.rollouts=1", "micro_batch=16"],
    )
    assert config.rows_per_prompt == 1
    assert "64 problems = 64" in refused("algorithm.name=sft", "micro_batch=48")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("- a\n", "holds a list"),
        ("5\n", "holds a int"),
        ("a: [\n", "is not YAML"),
        ("a: \x00\n", "is not YAML"),
        ("stesp: 5\n", "no setting `stesp`; did you mean `steps`?"),
        ("5: 5\n", "no setting `5`"),
        ("", "model is ''"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, expected):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(expected)) as raised:
        load_config(path, overrides=NEEDED[1:])
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    with pytest.raises(InputError, match="there is no configuration"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe4\n")
    with pytest.raises(InputError, match="is not YAML"):
        load_config(tmp_path / "latin.yaml")


def test_an_error_names_the_file_that_it_stands_in(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("steps: x\n")
    with pytest.raises(InputError, match=r"run\.yaml: steps is 'x'"):
        load_config(path)


def test_differences_are_named_by_their_sections():
    ours = load_config(overrides=NEEDED)
    theirs = load_config(overrides=[*NEEDED, "seed=1", "optimizer.lr=1e-5", "extra.n=5"], with_extra=True)
    assert ours.differences(theirs) == ["seed", "optimizer.lr", "extra"]


def test_every_algorithm_says_what_it_does():
    for name, algorithm in ALGORITHMS.items():
        assert get_algorithm(name) is algorithm
        assert algorithm.name == name
        assert algorithm.description
    assert [name for name, a in ALGORITHMS.items() if a.is_supervised] == ["sft"]
    # As the papers have them: asymmetric for DAPO, three orders smaller for GSPO.
    assert (ALGORITHMS["dapo-loss"].clip_low, ALGORITHMS["dapo-loss"].clip_high) == (0.2, 0.28)
    assert (ALGORITHMS["gspo"].clip_low, ALGORITHMS["gspo"].clip_high) == (3e-4, 4e-4)
    with pytest.raises(SelectionError):
        get_algorithm("")


def test_a_clip_range_is_the_algorithms_own_unless_given():
    assert AlgorithmConfig("gspo").clip_range == (3e-4, 4e-4)
    assert AlgorithmConfig("gspo", clip_high=0.1).clip_range == (3e-4, 0.1)


def test_every_section_is_frozen():
    config = load_config(overrides=NEEDED, with_extra=True)
    for section in (config, *(getattr(config, f.name) for f in fields(config))):
        if hasattr(section, "__dataclass_fields__"):
            with pytest.raises(AttributeError, match="cannot assign"):
                setattr(section, fields(section)[0].name, None)
