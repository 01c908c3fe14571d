"""Evaluations of real models from beginning to end, by transformers; what vLLM adds is in engines."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ckptlin.demo import base_model
from ckptlin.errors import GradingError, InputError
from ckptlin.evaluate import answering
from ckptlin.evaluate.engines import EngineOptions
from ckptlin.evaluate.evaluator import evaluate, plan_evaluation
from ckptlin.evaluate.models import resolve_models
from ckptlin.evaluate.samples import Sample, SampleFile, read_samples
from ckptlin.evaluate.tasks import open_task

ROOT = Path(__file__).parents[2]
OPTIONS = EngineOptions(dtype="float32", device="cpu", batch_size=256)


def planned(items, out, *, task="sums", limit=20, samples=4, resolve=None, overwrite=False, **changes):
    task = open_task(task, limit=limit) if isinstance(task, str) else task
    return plan_evaluation(
        resolve_models([str(item) for item in items], **(resolve or {})),
        task,
        out,
        sampling=replace(task.sampling, num_samples=samples, **changes),
        engine="hf",
        options=OPTIONS,
        overwrite=overwrite,
    )


def all_samples(out):
    return {
        path.stem: {(s.problem_id, s.sample): s for s in read_samples(path)}
        for path in sorted((out / "samples").glob("*.jsonl"))
    }


@pytest.fixture(scope="module")
def evaluated(noisy_run, tmp_path_factory):
    """The noisy run on a hundred sums."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    return evaluate(planned([noisy_run], out, limit=60, samples=4))


@pytest.fixture
def no_engine(monkeypatch):
    def refuse(*_):
        raise AssertionError("an engine was opened")

    monkeypatch.setattr(answering, "open_engine", refuse)


def test_the_curve_rises_to_the_model_without_noise(evaluated):
    values = [model.summary.estimates["avg@4"].value for model in evaluated.models]
    assert [model.step for model in evaluated.models] == [0, 10, 20, 30]
    assert values[0] < values[1] < values[3]
    assert 0.3 < values[3] < 0.55
    last = evaluated.comparisons["step-30"]
    assert last.difference == pytest.approx(values[3] - values[0])
    assert last.interval.low > 0


def test_scores_are_those_of_the_texts(evaluated):
    """The task's answers are texts: whoever reads the samples can tell."""
    problems = [json.loads(line) for line in (evaluated.out_dir / "problems.jsonl").read_text().splitlines()]
    right = {problem["id"]: problem["answer"] for problem in problems}
    for model in evaluated.models:
        samples = all_samples(evaluated.out_dir)[model.label]
        for problem_id, scores in model.scores.items():
            told = [samples[problem_id, n] for n in range(4)]
            assert scores == [float(s.finished and s.text == right[problem_id]) for s in told]
        assert model.num_tokens == sum(len(s.token_ids) for s in samples.values())
        assert model.summary.estimates["avg@4"].value == pytest.approx(np.mean(list(model.scores.values())))


def test_results_say_what_they_depend_on(evaluated):
    results = json.loads((evaluated.out_dir / "results.json").read_text())
    assert results == json.loads(json.dumps(evaluated.to_dict()))
    assert results["versions"].keys() >= {"ckptlin", "torch", "transformers"}
    assert results["sampling"]["temperature"] == 1.0
    model = results["models"][0]
    assert model["engine"]["name"] == "hf"
    assert len(model["fingerprint"]) == 32
    assert model["lengths"]


def test_the_same_again_asks_no_model(evaluated, noisy_run, no_engine):
    again = evaluate(planned([noisy_run], evaluated.out_dir, limit=60, samples=4))
    assert [m.summary.to_dict() for m in again.models] == [m.summary.to_dict() for m in evaluated.models]


def test_fewer_samples_are_the_first_ones(evaluated, noisy_run, no_engine):
    fewer = evaluate(planned([noisy_run / "checkpoint-10"], evaluated.out_dir, limit=60, samples=2))
    whole = next(model for model in evaluated.models if model.step == 10)
    assert fewer.models[0].scores == {name: scores[:2] for name, scores in whole.scores.items()}


def test_more_samples_are_added_to_those_that_are_there(noisy_run, tmp_path):
    item = noisy_run / "checkpoint-20"
    evaluate(planned([item], tmp_path / "parts", samples=2))
    before = (tmp_path / "parts/samples/step-20.jsonl").read_bytes()
    evaluate(planned([item], tmp_path / "parts", samples=4))
    assert (tmp_path / "parts/samples/step-20.jsonl").read_bytes().startswith(before)
    evaluate(planned([item], tmp_path / "whole", samples=4))
    assert all_samples(tmp_path / "parts") == all_samples(tmp_path / "whole")


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.evaluate.test_evaluator import evaluate, planned, replace
plan = planned([sys.argv[2]], sys.argv[3], limit=40)
evaluate(replace(plan, options=replace(plan.options, batch_size=4)))
"""


def test_a_killed_evaluation_goes_on_where_it_was(noisy_run, tmp_path):
    """Killed at the first samples, and again a while later: nothing is lost, and nothing comes twice."""
    out = tmp_path / "out"
    seen = 0
    for wait in (1, 60):
        command = [sys.executable, "-c", PROGRAM, str(ROOT), str(noisy_run), str(out)]
        with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            deadline = time.monotonic() + 200
            while process.poll() is None and sum(map(len, all_samples(out).values())) < seen + wait:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
        kept = all_samples(out)
        seen = sum(map(len, kept.values()))
        assert 0 < seen < 4 * 160
    result = evaluate(planned([noisy_run], out, limit=40))
    found = all_samples(out)
    assert all(found[label][key] == sample for label in kept for key, sample in kept[label].items())
    evaluate(planned([noisy_run], tmp_path / "whole", limit=40))
    assert found == all_samples(tmp_path / "whole")
    assert [model.summary.num_samples for model in result.models] == [4] * 4


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"seed": 1}, "sampling.seed 0, not 1"), ({"temperature": 0.5}, "sampling.temperature 1.0, not 0.5"),
     ({"limit": 5}, "begun with problems")],
)  # fmt: skip
def test_another_schedule_is_refused_and_overwrite_begins_anew(noisy_run, tmp_path, change, expected):
    item = noisy_run / "checkpoint-0"
    evaluate(planned([item], tmp_path, limit=4, samples=1))
    before = (tmp_path / "samples/step-0.jsonl").read_bytes()
    with pytest.raises(InputError, match=expected):
        evaluate(planned([item], tmp_path, **({"limit": 4, "samples": 1} | change)))
    assert (tmp_path / "samples/step-0.jsonl").read_bytes() == before
    plan = planned([item], tmp_path, overwrite=True, **({"limit": 4, "samples": 1} | change))
    evaluate(plan, overwrite=True)
    assert len(all_samples(tmp_path)["step-0"]) == len(plan.problems)


def test_a_model_that_has_changed_is_refused(noisy_run, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(noisy_run / "checkpoint-0", model)
    evaluate(planned([model], tmp_path / "out", limit=4))
    shutil.copy(noisy_run / "checkpoint-30" / "model.safetensors", model)
    with pytest.raises(InputError, match="samples of another model called model"):
        evaluate(planned([model], tmp_path / "out", limit=4))


def test_a_model_of_another_tokenizer_is_refused_beside_others(noisy_run, tmp_path):
    run = tmp_path / "run"
    for step in (0, 10):
        shutil.copytree(noisy_run / f"checkpoint-{step}", run / f"checkpoint-{step}")
    path = run / "checkpoint-10" / "tokenizer.json"
    text = path.read_text()
    swapped = text.replace('"7":', '"x":').replace('"8":', '"7":').replace('"x":', '"8":')
    assert swapped != text
    path.write_text(swapped)
    with pytest.raises(InputError, match="model step-10 has another tokenizer"):
        evaluate(planned([run], tmp_path / "out", limit=4))
    # What the first has answered is kept, and counts.
    assert len(all_samples(tmp_path / "out")["step-0"]) == 16


def test_tokens_that_the_model_has_not_are_refused_before_anything_is_generated(noisy_run, tmp_path, no_engine):
    model = tmp_path / "model"
    shutil.copytree(noisy_run / "checkpoint-0", model)
    path = model / "tokenizer.json"
    path.write_text(path.read_text().replace('"+": ', '"+": 9'))
    with pytest.raises(InputError, match=r"has the token 9\d+, but the vocabulary .* ends at 15"):
        evaluate(planned([model], tmp_path / "out", limit=4))


def test_a_store_and_a_target_step_are_evaluated_like_checkpoints(noisy_run, tmp_path, evaluated):
    from ckptlin.ingest import ingest

    ingest(noisy_run, tmp_path / "store")
    options = {"steps": "20", "targets": [30], "method": "two-point", "window": "0:20"}
    result = evaluate(planned([tmp_path / "store"], tmp_path / "out", limit=60, samples=4, resolve=options))
    assert [(m.label, m.origin) for m in result.models] == [
        ("step-20", "checkpoint"),
        ("step-30-two-point", "extrapolated"),
    ]
    as_trained = {model.step: model for model in evaluated.models}
    assert result.models[0].scores == as_trained[20].scores
    assert result.models[0].fingerprint == as_trained[20].fingerprint
    # The run is a line, but two-point keeps the norms: what was not seen is solved nearly as well.
    difference = (
        result.models[1].summary.estimates["avg@4"].value - result.models[0].summary.estimates["avg@4"].value
    )
    assert difference > -0.05
    assert not (tmp_path / "out" / "scratch").exists()


def write_samples(out, label, answers):
    """Put samples where an evaluation has been begun."""
    with SampleFile(out / "samples" / f"{label}.jsonl") as file:
        file.append(
            [
                Sample(problem, n, 0, text, finished, tuple(range(len(text))))
                for problem, texts in answers.items()
                for n, (text, finished) in enumerate(texts)
            ]
        )


def test_answers_that_are_empty_or_cut_off_are_counted(tmp_path, no_engine):
    plan = planned([base_model()], tmp_path, limit=2, samples=2)
    (tmp_path / "samples").mkdir()
    first, second = plan.problems
    answers = {
        first.id: [("", True), (first.answer, True)],
        second.id: [(second.answer, False), ("1;2", True)],
    }
    write_samples(tmp_path, "base", answers)
    [model] = evaluate_begun(plan)
    assert list(model.scores.values()) == [[0.0, 1.0], [0.0, 0.0]]
    assert model.summary.lengths.share_truncated == 0.25
    assert model.summary.lengths.num_empty == 1


def evaluate_begun(plan):
    """Evaluate where samples lie already, as after a kill at the very end."""
    samples = {path.name: path.read_bytes() for path in (plan.out_dir / "samples").iterdir()}
    shutil.rmtree(plan.out_dir / "samples")
    from ckptlin.evaluate.directory import open_evaluation

    with open_evaluation(plan.out_dir, plan.settings):
        pass
    for name, content in samples.items():
        (plan.out_dir / "samples" / name).write_bytes(content)
    return evaluate(plan).models


def score_or_raise(completion, problem):
    if os.environ.get("CKPTLIN_TEST_GRADER") == "raise":
        raise ValueError("no such answer")
    return float(completion == problem.answer)


def test_a_grader_that_raises_leaves_the_samples_to_be_graded_again(noisy_run, tmp_path, monkeypatch):
    task = replace(open_task("sums", limit=4), grader="tests.evaluate.test_evaluator:score_or_raise")
    plan = planned([noisy_run / "checkpoint-30"], tmp_path, task=task)
    monkeypatch.setenv("CKPTLIN_TEST_GRADER", "raise")
    with pytest.raises(GradingError, match="no such answer"):
        evaluate(plan)
    monkeypatch.delenv("CKPTLIN_TEST_GRADER")
    before = all_samples(tmp_path)
    monkeypatch.setattr(answering, "open_engine", None)
    [model] = evaluate(plan).models
    assert all_samples(tmp_path) == before
    assert len(model.scores) == 4


def test_another_grader_grades_the_same_samples(noisy_run, tmp_path, monkeypatch):
    item = noisy_run / "checkpoint-30"
    [first] = evaluate(planned([item], tmp_path)).models
    monkeypatch.setattr(answering, "open_engine", None)
    task = replace(open_task("sums", limit=20), grader_parameters={"require_finished": False})
    [second] = evaluate(planned([item], tmp_path, task=task)).models
    assert sum(map(sum, second.scores.values())) >= sum(map(sum, first.scores.values()))


def test_a_context_without_room_shortens_answers_and_says_so(noisy_run, tmp_path):
    heard = Heard()
    evaluate(planned([noisy_run / "checkpoint-0"], tmp_path, limit=3, max_tokens=1000), listener=heard)
    assert len(heard.notes) == 1
    assert "cut off after 118 tokens instead of 1,000: its context of 128" in heard.notes[0]


class Heard:
    def __init__(self):
        self.notes, self.counts, self.loading, self.grading = [], [], [], []

    def on_loading(self, model, what):
        self.loading.append((model, what))

    def on_samples(self, count):
        self.counts.append(count)

    def on_grading(self, model, num_samples):
        self.grading.append((model, num_samples))

    def note(self, message):
        self.notes.append(message)


def test_progress_counts_what_is_written(noisy_run, tmp_path):
    heard = Heard()
    evaluate(planned([noisy_run], tmp_path, resolve={"steps": "0:10"}), listener=heard)
    for label in ("step-0", "step-10"):
        counts = [count for count in heard.counts if count.model == label]
        assert [counts[0].samples, counts[-1].samples, counts[-1].problems] == [0, 80, 20]
        assert [count.samples for count in counts] == sorted(count.samples for count in counts)
        assert counts[-1].tokens == sum(len(s.token_ids) for s in all_samples(tmp_path)[label].values())
    assert heard.counts[0].left_s is None
    assert heard.counts[-1].left_s == 0.0
    assert heard.grading == [("step-0", 80), ("step-10", 80)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"ks": [1, 9]}, "k = 9 is not between 1 and"), ({"baseline": "step-7"}, "step-7 is none of the models")],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(noisy_run, tmp_path, options, expected):
    with pytest.raises(InputError, match=expected):
        evaluate(planned([noisy_run], tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
