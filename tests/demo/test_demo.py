"""The demo from end to end, at a small size."""

import importlib.util
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from ckptlin.demo import DEMO_METHODS, DemoSettings, base_model, run_demo
from ckptlin.demo.evaluation import evaluate
from ckptlin.errors import InputError, MissingExtraError, OutputExistsError
from ckptlin.fit import read_summary
from ckptlin.methods import get_method
from ckptlin.problems import draw_sums, in_test_split
from ckptlin.rl.step_log import read_log
from ckptlin.store.store import TrajectoryStore
from tests.command_line import call, call_json, refusal
from tests.demo.conftest import SEED, TINY

SAVES = range(0, TINY.steps + 1, TINY.save_every)


def weights(directory):
    return load_file(directory / "model.safetensors")


def test_everything_lies_where_it_is_said_to_lie(toured):
    out = toured.out
    assert sorted(path.name for path in out.iterdir()) == [
        "base",
        "demo.json",
        "extrapolated",
        "figures",
        "run",
        "store",
        "train.yaml",
    ]
    assert {path.name for path in (out / "run").glob("checkpoint-*")} == {
        f"checkpoint-{step}" for step in SAVES
    }
    assert TrajectoryStore(out / "store").steps == tuple(SAVES)
    assert {path.name for path in (out / "extrapolated").iterdir()} == set(DEMO_METHODS)
    assert {path.name for path in toured.result.figures} == {
        "reward.png",
        "r2_histogram.png",
        "r2_by_layer.png",
        "trajectories.png",
        "skill.png",
        "comparison.png",
    }
    assert sorted((out / "figures").iterdir()) == sorted(toured.result.figures)


def test_the_run_starts_from_the_model_that_comes_with_the_package_and_moves_every_tensor(toured):
    first = weights(toured.out / "run" / "checkpoint-0")
    shipped = weights(base_model())
    assert first.keys() == shipped.keys()
    assert all((first[name] == shipped[name]).all() for name in shipped)
    assert all(group.update_norm > 0 for group in read_summary(TrajectoryStore(toured.out / "store")).tensors())


def test_it_is_reinforcement_learning_of_as_many_answers_as_it_says(toured):
    rows = read_log(toured.out / "run" / "log.csv")
    assert [row.step for row in rows] == list(range(1, TINY.steps + 1))
    assert rows[-1].updates == TINY.steps
    num_answers = TINY.num_prompts * TINY.num_rollouts
    # Rewards are 0 or 1: their mean over a step's answers is a multiple of one answer's share.
    rewards = np.array([row.reward for row in rows]) * num_answers
    np.testing.assert_allclose(rewards, rewards.round(), atol=1e-3)
    assert all(row.length is not None and row.entropy is not None and row.entropy > 0 for row in rows)


def test_the_reward_rises_by_more_than_three_standard_errors(toured):
    rise = toured.result.rise
    rewards = [row.reward for row in read_log(toured.out / "run" / "log.csv")]
    assert rise.window == TINY.steps // 2
    assert rise.first == pytest.approx(np.mean(rewards[: rise.window]))
    assert rise.last == pytest.approx(np.mean(rewards[-rise.window :]))
    assert rise.num_standard_errors > 3


@pytest.mark.slow
def test_the_reward_of_the_demo_itself_rises_by_more_than_three_standard_errors(tmp_path):
    rise = run_demo(tmp_path / "demo", say=lambda line: None).rise
    assert rise.window == 50
    assert rise.num_standard_errors > 3


def test_the_record_holds_what_is_returned(toured):
    record = json.loads((toured.out / "demo.json").read_text())
    assert record == json.loads(json.dumps(toured.result.to_dict()))
    assert record["finished"]
    assert record["settings"]["lr"] == TINY.lr
    assert record["linearity"] == read_summary(TrajectoryStore(toured.out / "store")).model().to_dict()
    assert set(record["comparison"]["methods"]) == set(DEMO_METHODS)
    assert set(record["comparison"]["trained"]) == {"0", "8", "20", "28", "40"}


def commands_in(said, prefix):
    return [shlex.split(line.removeprefix(prefix)) for line in said if line.startswith(prefix)]


def test_the_commands_that_are_said_do_the_same_by_hand(toured, tmp_path):
    out = toured.out
    commands = commands_in(toured.said, "$ ckptlin ")
    names = [words[0] for words in commands]
    assert names == ["train", "ingest", "fit", "plot", "backtest", *["extrapolate"] * len(DEMO_METHODS)]
    plan = call_json(*commands[0], "--dry-run")
    assert plan["resumes_at"] == TINY.steps
    assert plan["config"] == json.loads((out / "run" / "ckptlin-train.json").read_text())["config"]
    for words in commands[1:]:
        for path in (out / "store", out / "extrapolated", out / "figures"):
            words[1:] = [w.replace(str(path), str(tmp_path / path.name)) for w in words[1:]]
        call(*words)
    for method in DEMO_METHODS:
        by_hand = (tmp_path / "extrapolated" / method / "model.safetensors").read_bytes()
        assert by_hand == (out / "extrapolated" / method / "model.safetensors").read_bytes()
    assert read_summary(TrajectoryStore(tmp_path / "store")).model().moved == toured.result.model.moved
    drawn_by_hand = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn_by_hand == {path.name for path in toured.result.figures} - {"comparison.png", "reward.png"}


def test_the_commands_to_go_on_with_work(toured, tmp_path):
    out = toured.out
    commands = commands_in(toured.said, "  $ ckptlin ")
    assert [words[0] for words in commands] == ["fit", "backtest", "extrapolate", "evaluate", "train", "ingest"]
    for words in commands:
        if words[0] == "train":
            plan = call_json(*words, "--dry-run")
            assert (plan["resumes_at"], plan["steps"]) == (TINY.steps, TINY.last_seen)
        elif words[0] == "evaluate":
            plan = call_json(*words, "--dry-run")
            assert [model["step"] for model in plan["models"]] == [0, 8, 16, 24, 32, 40]
            assert plan["num_samples"] == 6 * 200 * 4
        else:
            assert call(*[word.replace(f"{out}/step-", f"{tmp_path}/step-") for word in words]).stdout


def test_the_extrapolated_weights_are_those_of_the_checkpoints_up_to_the_last_seen(toured):
    out = toured.out
    steps = np.arange(0, TINY.last_seen + 1, TINY.save_every)
    seen = [weights(out / "run" / f"checkpoint-{step}") for step in steps]
    for method in ("two-point", "ols"):
        entry = get_method(method)
        coefficients = entry.function(steps.astype(float), float(TINY.steps), None)
        predicted = weights(out / "extrapolated" / method)
        assert set(predicted) == set(seen[0])
        for name, values in predicted.items():
            if any(pattern in name for pattern in entry.keep):
                expected = seen[-1][name]
            else:
                expected = sum(a * w[name].astype(np.float64) for a, w in zip(coefficients, seen, strict=True))
            np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)
    record = json.loads((out / "extrapolated" / "auto" / "ckptlin.json").read_text())
    assert record["auto"]
    assert record["window"] == steps.tolist()


def test_the_comparison_is_that_of_the_checkpoints_on_disk(toured):
    out, comparison = toured.out, toured.result.comparison
    held_out = draw_sums(TINY.num_held_out, split="test", seed=SEED)
    assert all(in_test_split(problem.problem) for problem in held_out)
    for checkpoint, found in (
        (out / "run" / f"checkpoint-{TINY.steps}", comparison.trained[TINY.steps]),
        (out / "extrapolated" / "ols", comparison.predicted["ols"]),
    ):
        again = evaluate(checkpoint, held_out, num_samples=TINY.num_samples, seed=SEED)
        np.testing.assert_array_equal(again.sampled.rewards, found.sampled.rewards)
        np.testing.assert_array_equal(again.probabilities, found.probabilities)
    trained = weights(out / "run" / f"checkpoint-{TINY.steps}")
    last = weights(out / "run" / f"checkpoint-{TINY.last_seen}")
    for method in DEMO_METHODS:
        predicted = weights(out / "extrapolated" / method)
        error = sum(np.square(predicted[n].astype(float) - trained[n]).sum() for n in trained)
        moved = sum(np.square(last[n].astype(float) - trained[n]).sum() for n in trained)
        assert comparison.distance[method] == pytest.approx(error**0.5)
        assert comparison.skill[method] == pytest.approx(1 - error / moved)


def test_checkpoints_are_in_float32_and_have_a_tokenizer(toured):
    out = toured.out
    for checkpoint in (out / "base", out / "run" / "checkpoint-4", out / "extrapolated" / "auto"):
        config = json.loads((checkpoint / "config.json").read_text())
        assert config["model_type"] == "qwen2"
        assert (checkpoint / "tokenizer.json").is_file()
        assert {w.dtype for w in weights(checkpoint).values()} == {np.dtype(np.float32)}


def test_what_it_says_has_the_figures_and_their_noise(toured):
    result, said = toured.result, toured.said
    text = "\n".join(said)
    for figures in (result.model.moved, result.model.null_moved):
        assert f"{figures.median:.2f}" in text
        assert f"{figures.above_7:.0%}" in text
    evaluations = (*result.comparison.predicted.values(), *result.comparison.trained.values())
    for found in evaluations:
        assert f"{found.pass_at_1:.1%} ± {found.standard_error:.1%}" in text
        assert f"{found.computed:.1%}" in text
    flowing = " ".join(text.split())
    for sentence in (*result.comparison.verdict(), *result.rise.verdict(), *result.backtest.sentences()):
        assert sentence in flowing
    assert all(str(path) in text for path in (*result.figures, toured.out / "demo.json"))
    assert all(answer.text in text for answer in result.answers)
    assert max(map(len, (line for line in said if str(toured.out) not in line))) <= 110


def test_progress_comes_to_the_end_of_every_phase(toured):
    phases = toured.heard.phases
    assert {"train", "ingest", "fit", "extrapolate", "evaluate"} <= set(phases)
    assert all(total == done for found in phases.values() for total, done in found)


def test_it_leaves_threads_random_numbers_and_logging_as_they_were(toured):
    assert toured.before == toured.after


def test_a_second_demo_replaces_the_first_gives_the_same_figures_and_spares_what_is_not_its_own(toured):
    out, result = toured.out, toured.result
    (out / "notes.txt").write_text("mine")
    (out / "store" / "leftover").write_text("old")
    again = run_demo(out, seed=SEED, settings=TINY, overwrite=True, say=lambda line: None)
    assert again.comparison.to_dict() == result.comparison.to_dict()
    assert again.rise == result.rise
    assert again.model == result.model
    assert again.answers == result.answers
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "store" / "leftover").exists()
    (out / "notes.txt").unlink()


# --- where it may write -------------------------------------------------------------------------------


def never(line):
    raise AssertionError(line)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_that_holds_something_else_is_refused(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputExistsError, match="is not empty, and holds no demo"):
        run_demo(tmp_path, settings=TINY, overwrite=overwrite, say=never)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_former_demo_is_replaced_on_request_only(tmp_path):
    (tmp_path / "demo.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        run_demo(tmp_path, settings=TINY, say=never)
    assert (tmp_path / "demo.json").read_text() == "{}"


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "demo").write_text("x")
    with pytest.raises(OutputExistsError, match="not a directory"):
        run_demo(tmp_path / "demo", settings=TINY, overwrite=True, say=never)


def test_a_demo_that_was_cut_off_can_be_replaced_and_links_in_it_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    out = tmp_path / "demo"

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(out, settings=TINY, say=stop)
    assert json.loads((out / "demo.json").read_text())["finished"] is False
    (out / "run").symlink_to(outside)
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, settings=TINY, overwrite=True, say=stop)
    assert not (out / "run").exists()
    assert (outside / "precious").exists()


@pytest.mark.parametrize("package", ["torch", "transformers", "accelerate", "trl", "datasets", "tensorboard"])
def test_without_the_extra_it_says_what_to_install_and_makes_nothing(tmp_path, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(MissingExtraError, match=rf'needs {package}; pip install "ckptlin\[train\]"'):
        run_demo(tmp_path / "demo", say=never)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"save_every": 7}, "must be multiples"),
        ({"last_seen": 300}, "must lie between"),
        ({"last_seen": 0}, "must lie between"),
        ({"num_held_out": 1}, "at least 2"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        DemoSettings(**sizes)


@pytest.mark.parametrize("steps", [1, 19, 50, 310])
def test_a_length_that_cannot_be_divided_into_the_checkpoints_is_refused(steps):
    with pytest.raises(InputError, match=f"multiple of 20, not {steps}"):
        DemoSettings.of_length(steps)


def test_the_command_refuses_such_a_length_in_one_sentence(tmp_path):
    assert "must be a multiple of 20, not 50" in refusal("demo", "--steps", "50", "--out", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("steps", [20, 60, 300, 1000])
def test_a_demo_of_another_length_has_as_many_checkpoints(steps):
    settings = DemoSettings.of_length(steps)
    assert settings.saves[0] == 0
    assert settings.saves[-1] == settings.steps == steps
    assert len(settings.saves) == 21
    assert settings.last_seen == steps // 2
    assert {0, steps // 2, steps} <= set(settings.evaluated) <= set(settings.saves)


def test_importing_the_demo_loads_no_torch():
    heavy = ("torch", "transformers", "trl", "datasets", "matplotlib")
    code = f"import sys, ckptlin.demo; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
