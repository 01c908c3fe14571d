import json
import random
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ckptlin import demo
from ckptlin.demo import DEMO_METHODS, DemoSettings, run_demo
from ckptlin.demo.compare import Comparison, Score, distance, generate, score, verdict
from ckptlin.demo.corpus import encode
from ckptlin.demo.figure import draw_comparison
from ckptlin.demo.training import require_models_extra
from ckptlin.errors import InputError, MissingExtraError, OutputExistsError
from ckptlin.fit import read_summary
from ckptlin.methods import get_method
from ckptlin.problems import draw_sums, make_sum
from ckptlin.problems.sums import build_tokenizer
from ckptlin.store.store import TrajectoryStore
from tests.command_line import call

pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate, which the extra `models` has")

TINY = DemoSettings(
    num_terms=2,
    num_train=75,
    num_held_out=25,
    hidden_size=32,
    num_layers=1,
    pretrain_steps=150,
    pretrain_batch=16,
    run_steps=24,
    run_batch=16,
    run_lr=1e-4,
    checkpoint_every=2,
    last_seen=12,
)


class Heard:
    """Progress that remembers: phases and how far each came."""

    def __init__(self):
        self.phases = {}

    def phase(self, title, num_bytes):
        heard = self

        class Phase:
            def __enter__(self):
                done = heard.phases.setdefault(title, [])
                done.append([num_bytes, 0])

                def advance(num_bytes):
                    done[-1][1] += num_bytes

                return advance

            def __exit__(self, *_):
                pass

        return Phase()

    def note(self, message):
        pass


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    """A tiny demo: its directory, its result, what it said, its progress, and states from before and after."""
    out = tmp_path_factory.mktemp("tour") / "demo"
    said, heard = [], Heard()

    def states():
        return (
            torch.get_num_threads(),
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            transformers.utils.logging.get_verbosity(),
            transformers.utils.logging.is_progress_bar_enabled(),
        )

    before = states()
    result = run_demo(out, seed=3, settings=TINY, progress=heard, say=said.append)
    return out, result, said, heard, before, states()


def problems_of(seed):
    return draw_sums(TINY.num_train + TINY.num_held_out, num_terms=TINY.num_terms, seed=seed)


# --- end to end ---------------------------------------------------------------------------------------


def test_everything_lies_where_it_is_said_to_lie(toured):
    out, result, *_ = toured
    assert sorted(path.name for path in out.iterdir()) == [
        "base",
        "demo.json",
        "extrapolated",
        "figures",
        "run",
        "store",
    ]
    steps = range(TINY.checkpoint_every, TINY.run_steps + 1, TINY.checkpoint_every)
    assert {path.name for path in (out / "run").iterdir()} == {f"checkpoint-{step}" for step in steps}
    assert TrajectoryStore(out / "store").steps == (0, *steps)
    assert {path.name for path in (out / "extrapolated").iterdir()} == set(DEMO_METHODS)
    assert {path.name for path in result.figures} == {
        "r2_histogram.png",
        "r2_by_layer.png",
        "trajectories.png",
        "comparison.png",
    }
    assert sorted((out / "figures").iterdir()) == sorted(result.figures)


def test_the_record_holds_what_is_returned(toured):
    out, result, *_ = toured
    record = json.loads((out / "demo.json").read_text())
    assert record == json.loads(json.dumps(result.to_dict()))
    assert record["finished"]
    assert record["settings"]["run_lr"] == TINY.run_lr
    assert record["linearity"] == read_summary(TrajectoryStore(out / "store")).model().to_dict()
    assert set(record["comparison"]["methods"]) == set(DEMO_METHODS)


def test_the_commands_that_are_said_do_the_same_by_hand(toured, tmp_path):
    out, result, said, *_ = toured
    commands = [shlex.split(line.removeprefix("$ ckptlin ")) for line in said if line.startswith("$ ckptlin ")]
    assert [words[0] for words in commands] == ["ingest", "fit", *["extrapolate"] * len(DEMO_METHODS), "plot"]
    made = (out / "store", out / "extrapolated", out / "figures")
    for words in commands:
        for path in made:
            words[1:] = [w.replace(str(path), str(tmp_path / path.name)) for w in words[1:]]
        call(*words)
    for method in DEMO_METHODS:
        by_hand = (tmp_path / "extrapolated" / method / "model.safetensors").read_bytes()
        assert by_hand == (out / "extrapolated" / method / "model.safetensors").read_bytes()
    assert read_summary(TrajectoryStore(tmp_path / "store")).model().moved == result.model.moved
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {p.name for p in result.figures} - {
        "comparison.png"
    }


def test_the_extrapolated_weights_are_those_of_the_checkpoints_up_to_the_last_seen(toured):
    out, *_ = toured
    steps = np.arange(0, TINY.last_seen + 1, TINY.checkpoint_every)
    paths = [out / "base", *(out / "run" / f"checkpoint-{step}" for step in steps[1:])]
    seen = [load_file(path / "model.safetensors") for path in paths]
    for method in DEMO_METHODS:
        entry = get_method(method)
        coefficients = entry.function(steps.astype(float), float(TINY.run_steps), None)
        predicted = load_file(out / "extrapolated" / method / "model.safetensors")
        assert set(predicted) == set(seen[0])
        for name, weights in predicted.items():
            if any(pattern in name for pattern in entry.keep):
                expected = seen[-1][name]
            else:
                expected = sum(a * w[name].astype(np.float64) for a, w in zip(coefficients, seen, strict=True))
            np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-7)


def test_the_comparison_is_that_of_the_checkpoints_on_disk(toured):
    out, result, *_ = toured
    comparison = result.comparison
    tokenizer = AutoTokenizer.from_pretrained(out / "base")
    held_out = encode(problems_of(3)[: TINY.num_held_out], tokenizer)
    assert score(out / "run" / f"checkpoint-{TINY.run_steps}", held_out) == comparison.run[TINY.run_steps]
    assert score(out / "extrapolated" / "ols", held_out) == comparison.predicted["ols"]
    assert set(comparison.run) == set(TrajectoryStore(out / "store").steps)
    trained = load_file(out / "run" / f"checkpoint-{TINY.run_steps}" / "model.safetensors")
    last = load_file(out / "run" / f"checkpoint-{TINY.last_seen}" / "model.safetensors")
    for method in DEMO_METHODS:
        predicted = load_file(out / "extrapolated" / method / "model.safetensors")
        error = sum(np.square(predicted[n].astype(float) - trained[n]).sum() for n in trained)
        moved = sum(np.square(last[n].astype(float) - trained[n]).sum() for n in trained)
        assert comparison.distance[method] == pytest.approx(error**0.5)
        assert comparison.skill[method] == pytest.approx(1 - error / moved)


def test_the_pretraining_taught_something_and_the_run_moved_every_tensor(toured):
    out, result, *_ = toured
    # Guessing among the 11 characters of an answer costs log 11 = 2.4 nats.
    assert result.comparison.run[0].loss < 1.5
    assert all(group.update_norm > 0 for group in read_summary(TrajectoryStore(out / "store")).tensors())


def test_checkpoints_are_what_the_trainer_saves_in_float32(toured):
    out, *_ = toured
    for checkpoint in (out / "base", out / "run" / "checkpoint-2", out / "extrapolated" / "ols"):
        config = json.loads((checkpoint / "config.json").read_text())
        assert config["model_type"] == "qwen2"
        assert (checkpoint / "tokenizer.json").is_file()
        assert {w.dtype for w in load_file(checkpoint / "model.safetensors").values()} == {np.dtype(np.float32)}


def test_what_it_says_has_the_figures_and_their_null(toured):
    out, result, said, *_ = toured
    text = "\n".join(said)
    model = result.model
    for figures in (model.moved, model.null_moved):
        assert f"{figures.median:.2f}" in text
        assert f"{figures.above_7:.0%}" in text
    for scored in (*result.comparison.predicted.values(), result.comparison.run[TINY.run_steps]):
        assert f"{scored.loss:.4f}" in text
    assert all(line in said for line in verdict(result.comparison))
    assert all(str(path) in text for path in (*result.figures, out / "demo.json"))
    assert "not reinforcement learning" in text
    assert max(map(len, (line for line in said if str(out) not in line))) <= 140


def test_progress_comes_to_the_end_of_every_phase(toured):
    heard = toured[3]
    assert {"pretrain", "train", "ingest", "fit", "extrapolate", "evaluate"} <= set(heard.phases)
    assert all(total == done for phases in heard.phases.values() for total, done in phases)


def test_it_leaves_threads_random_numbers_and_logging_as_they_were(toured):
    *_, before, after = toured
    assert before == after


def test_a_second_demo_replaces_the_first_gives_the_same_figures_and_spares_what_is_not_its_own(toured):
    out, result, *_ = toured
    (out / "notes.txt").write_text("mine")
    (out / "store" / "leftover").write_text("old")
    again = run_demo(out, seed=3, settings=TINY, overwrite=True, say=lambda line: None)
    assert again.comparison == result.comparison
    assert again.model == result.model
    assert again.generations == result.generations
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


@pytest.mark.parametrize("package", ["torch", "transformers", "accelerate"])
def test_without_the_extra_it_says_what_to_install_and_makes_nothing(tmp_path, monkeypatch, package):
    find = demo.training.importlib.util.find_spec
    monkeypatch.setattr(
        demo.training.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(MissingExtraError, match=rf'needs {package}; pip install "ckptlin\[models\]"'):
        run_demo(tmp_path / "demo", say=never)
    assert not (tmp_path / "demo").exists()
    with pytest.raises(MissingExtraError):
        require_models_extra()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"checkpoint_every": 7}, "must be multiples"),
        ({"last_seen": 480}, "must lie between"),
        ({"last_seen": 0}, "must lie between"),
        ({"num_terms": 4}, "10,000 sums of 4 digits"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        DemoSettings(**sizes)


# --- parts --------------------------------------------------------------------------------------------


def test_only_the_answer_is_scored_and_it_can_be_read_back(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    problems = [make_sum((1, 2, 3)), make_sum((9, 9, 9))]
    encoded = encode(problems, tokenizer)
    for row, problem in enumerate(problems):
        ids, labels = encoded[row]["input_ids"], encoded[row]["labels"]
        whole = f"{problem.problem}{problem.answer}#"
        assert tokenizer.decode(labels[labels >= 0]) == f"{problem.answer}#"
        assert tokenizer.decode(ids, skip_special_tokens=False).startswith(whole)
        assert (ids[labels >= 0] == labels[labels >= 0]).all()


def test_a_score_is_the_loss_of_transformers_and_what_greedy_decoding_gets_right(toured):
    out, *_ = toured
    checkpoint = out / "base"
    problems = problems_of(3)
    encoded = encode(problems, AutoTokenizer.from_pretrained(checkpoint))
    scored = score(checkpoint, encoded)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        loss = model(
            input_ids=torch.from_numpy(encoded.input_ids), labels=torch.from_numpy(encoded.labels)
        ).loss
    assert scored.loss == pytest.approx(float(loss), rel=1e-5)
    right = [generation.is_right for generation in generate(checkpoint, problems)]
    assert scored.exact == pytest.approx(np.mean(right))
    assert 0.1 < scored.exact < 1.0


def test_the_distance_of_a_checkpoint_to_itself_is_zero(toured):
    out, *_ = toured
    assert distance(out / "base", out / "base") == 0.0


def compared(**losses) -> Comparison:
    """Make a comparison in which step 10 is the last seen, at a loss of 1.0, and step 20 the target."""
    trained = losses.pop("trained", 0.5)
    far = losses.pop("far", ())
    return Comparison(
        target=20,
        last_seen=10,
        run={0: Score(2.0, 0.1), 10: Score(1.0, 0.5), 20: Score(trained, 0.7)},
        predicted={method: Score(loss, 0.6) for method, loss in losses.items()},
        distance={method: 3.0 if method in far else 0.5 for method in losses},
        distance_last_seen=1.0,
    )


def test_the_verdict_says_how_much_was_gained():
    comparison = compared(ols=0.8, anchored=0.9)
    assert comparison.skill == {"ols": 0.75, "anchored": 0.75}
    assert comparison.gained == pytest.approx({"ols": 0.4, "anchored": 0.2})
    every, best = verdict(comparison)
    assert every.startswith("Every extrapolation has a lower loss than step 10")
    assert best.startswith("The best, ols, gains 40% of what 10 steps of training gain")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({"ols": 1.2, "anchored": 1.1}, "No extrapolation has a lower loss than step 10"),
        ({"ols": 0.9, "anchored": 1.1, "two-point": 1.2}, "ols has a lower loss than step 10"),
        ({"ols": 0.9, "anchored": 1.1, "two-point": 1.2}, "anchored and two-point have not."),
        ({"ols": 0.4}, "ols is even below step 20 as it was trained."),
        ({"ols": 0.9, "trained": 1.5}, "Training itself gained nothing from step 10 to 20."),
        ({"ols": 0.9, "far": ("ols",)}, "In weights ols is farther from the trained step 20 than step 10 is."),
    ],
)
def test_the_verdict_does_not_hide_what_did_not_work(losses, expected):
    assert expected in " ".join(verdict(compared(**losses)))


def test_the_verdict_says_when_fewer_answers_are_right():
    comparison = compared(ols=0.9)
    worse = Comparison(**{**comparison.__dict__, "predicted": {"ols": Score(0.9, 0.3)}})
    assert "But ols gets fewer answers wholly right." in verdict(worse)


def test_the_comparison_figure_shows_the_run_each_method_and_its_skill():
    figure = draw_comparison(compared(ols=0.8, anchored=0.9), name="tour")
    losses, distances = figure.axes
    line = next(line for line in losses.lines if line.get_label() == "as trained")
    np.testing.assert_array_equal(line.get_ydata(), [2.0, 1.0, 0.5])
    assert [t.get_text() for t in losses.get_legend().get_texts()] == [
        "seen by the methods",
        "as trained",
        "ols",
        "anchored",
    ]
    assert [bar.get_width() for bar in distances.patches] == [1.0, 0.5, 0.5]
    assert [t.get_text() for t in distances.texts] == [" 1, the last seen", *[" 0.5, skill 0.75"] * 2]
    assert "extrapolated from steps up to 10 to step 20" in figure.texts[1].get_text()


def test_importing_the_demo_loads_no_torch():
    heavy = ("torch", "transformers", "matplotlib")
    code = f"import sys, ckptlin.demo; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
