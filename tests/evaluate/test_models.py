"""Which models a user means, and where an engine finds them."""

import json
import os
import shutil

import pytest

from ckptlin.demo import base_model
from ckptlin.errors import CheckpointError, InputError, SelectionError
from ckptlin.evaluate.models import fingerprint_of, resolve_models
from ckptlin.extrapolate import extrapolate
from ckptlin.ingest import ingest
from ckptlin.source import open_source
from tests.tiny_models import load_weights


@pytest.fixture(scope="module")
def store(noisy_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "run.store"
    ingest(noisy_run, path)
    return path


def described(models):
    return [(model.label, model.step, model.origin, model.method) for model in models]


def test_a_run_is_its_checkpoints(noisy_run, tmp_path):
    models = resolve_models([str(noisy_run)])
    assert described(models) == [(f"step-{n}", n, "checkpoint", None) for n in (0, 10, 20, 30)]
    with models[1].open(tmp_path) as place:
        assert place == noisy_run / "checkpoint-10"
    assert [model.step for model in resolve_models([str(noisy_run)], steps="0:30:20")] == [0, 20]


def test_explicit_steps_and_a_directory_without_one(noisy_run):
    items = [str(base_model()), f"7={noisy_run}/checkpoint-0", f"3={noisy_run}/checkpoint-20"]
    assert described(resolve_models(items)) == [
        ("base", None, "checkpoint", None),
        ("step-3", 3, "checkpoint", None),
        ("step-7", 7, "checkpoint", None),
    ]


def test_the_base_model_is_step_0(noisy_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(noisy_run / "checkpoint-30", run / "checkpoint-30")
    models = resolve_models([str(run)], base=str(base_model()))
    assert [model.step for model in models] == [0, 30]


def test_a_step_of_a_store_is_written_bit_for_bit_and_taken_away_again(store, noisy_run, tmp_path):
    models = resolve_models([str(store)], steps="20:30")
    assert described(models) == [("step-20", 20, "checkpoint", None), ("step-30", 30, "checkpoint", None)]
    with models[0].open(tmp_path) as place:
        assert fingerprint_of(place) == fingerprint_of(noisy_run / "checkpoint-20")
        assert (place / "tokenizer.json").is_file()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["store", "run"])
def test_a_target_is_extrapolated_as_the_command_does(kind, store, noisy_run, tmp_path):
    source = {"store": store, "run": noisy_run}[kind]
    [model] = resolve_models([str(source)], targets=[40], method="two-point", window="0:20")
    assert described([model]) == [("step-40-two-point-0-20", 40, "extrapolated", "two-point")]
    extrapolate(open_source(str(source)), 40, tmp_path / "there", method="two-point", steps="0:20")
    with model.open(tmp_path) as place:
        assert fingerprint_of(place) == fingerprint_of(tmp_path / "there")
    [again] = resolve_models([str(tmp_path / "there")])
    assert described([again]) == described([model])


def test_steps_and_targets_together_are_one_curve(store):
    models = resolve_models([str(store)], steps="0,30", targets=[40, 20], method="ols")
    assert [model.label for model in models] == ["step-0", "step-20-ols-0-30", "step-30", "step-40-ols-0-30"]


def test_two_steps_of_a_run_by_extrapolated_logits(noisy_run, tmp_path):
    from ckptlin.logits import read_pair

    [_, pair] = resolve_models([str(noisy_run)], steps="0", pairs=["10:20:40"])
    assert described([pair]) == [("step-40-logits-10-20", 40, "extrapolated", "logits")]
    with pair.open(tmp_path) as place:
        found = read_pair(place)
        assert (found.alpha, found.steps, found.target) == (3.0, (10, 20), 40)
        assert (found.base, found.second) == tuple(noisy_run / f"checkpoint-{step}" for step in (10, 20))
    assert list(tmp_path.iterdir()) == []
    explicit = f"{noisy_run}/checkpoint-10:{noisy_run}/checkpoint-20:40"
    assert resolve_models([], pairs=[explicit])[0].identity == pair.identity


def test_a_tokenizer_in_another_directory_is_put_beside_the_weights(noisy_run, tmp_path):
    checkpoint = tmp_path / "run" / "step_5"
    (checkpoint / "policy/hf_model").mkdir(parents=True)
    (checkpoint / "policy/tokenizer").mkdir()
    for path in (noisy_run / "checkpoint-10").iterdir():
        part = "tokenizer" if path.name.startswith("tokenizer") else "hf_model"
        shutil.copy(path, checkpoint / "policy" / part / path.name)
    [model] = resolve_models([str(tmp_path / "run")])
    with model.open(tmp_path / "scratch") as place:
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(place))
        assert load_weights(place).keys() == load_weights(base_model()).keys()


def test_the_fingerprint_is_the_weights(noisy_run, tmp_path):
    first = fingerprint_of(noisy_run / "checkpoint-10")
    copy = tmp_path / "copy"
    shutil.copytree(noisy_run / "checkpoint-10", copy)
    assert fingerprint_of(copy) == first != fingerprint_of(noisy_run / "checkpoint-20")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint_of(copy) != first


@pytest.mark.parametrize(
    ("items", "options", "error", "expected"),
    [
        ([], {}, InputError, "no model was given"),
        (["./nowhere"], {}, CheckpointError, "neither a directory nor a name of the hub"),
        (["BASE"], {"steps": "0:10"}, InputError, "--steps chooses steps of a run or a store"),
        (["BASE"], {"targets": [40]}, InputError, "--step chooses steps of a run or a store"),
        (["BASE", "BASE"], {}, InputError, "given twice"),
        (["RUN", "RUN"], {}, InputError, "given twice"),
        (["RUN", "STORE"], {"targets": [40]}, InputError, "one run or store, and 2 were given"),
        (["RUN"], {"steps": "5"}, SelectionError, "step 5 of --steps 5 does not exist"),
        (["RUN"], {"targets": [40], "method": "magic"}, SelectionError, "magic"),
        (["RUN"], {"pairs": ["10:20"]}, InputError, "is no A:B:N"),
        (["RUN"], {"pairs": ["10:15:40"]}, InputError, "has no checkpoint of step 15"),
        (["BASE"], {"pairs": ["10:20:40"]}, InputError, "step 10 of --logits-extrapolation is one of a run"),
        (["RUN"], {"pairs": ["10:10:40"]}, InputError, "both checkpoints are of step 10"),
    ],
)
def test_what_cannot_be_meant_is_refused(items, options, error, expected, noisy_run, store):
    places = {"BASE": str(base_model()), "RUN": str(noisy_run), "STORE": str(store)}
    with pytest.raises(error, match=expected):
        resolve_models([places.get(item, item) for item in items], **options)


def test_two_runs_with_a_step_in_common_are_told_apart(noisy_run, tmp_path):
    shutil.copytree(noisy_run / "checkpoint-10", tmp_path / "other" / "checkpoint-10")
    items = [str(noisy_run / "checkpoint-10"), str(tmp_path / "other" / "checkpoint-10")]
    assert [model.label for model in resolve_models(items)] == ["run-step-10", "other-step-10"]


def test_a_checkpoint_that_lacks_a_shard_is_refused(noisy_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(noisy_run / "checkpoint-10", run / "checkpoint-10")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (run / "checkpoint-10" / "model.safetensors").unlink()
    (run / "checkpoint-10" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="model-00001-of-00002"):
        resolve_models([str(run)])
