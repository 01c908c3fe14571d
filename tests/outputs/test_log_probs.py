"""From checkpoints to the store: a run, a store and explicit steps agree, and a killed or grown run goes on."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ckptlin.errors import InputError, NonFiniteError, SelectionError, StepConflictError
from ckptlin.ingest import ingest
from ckptlin.outputs import log_probs
from ckptlin.outputs.log_probs import compute_log_probs, plan_log_probs
from ckptlin.outputs.responses import read_responses
from ckptlin.outputs.token_store import TokenStore
from tests.command_line import call, call_json, refusal
from tests.outputs.changed_runs import changed
from tests.outputs.conftest import STEPS


def compute(items, responses, out, **options):
    return compute_log_probs(plan_log_probs([str(item) for item in items], responses, out, **options))


@pytest.fixture(scope="module")
def trajectories(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("trajectories") / "run.store"
    ingest(run, path)
    return path


def test_every_step_is_that_of_the_whole_model_in_float64(run, responses, tmp_path):
    store = compute([run], responses, tmp_path / "t").store
    assert store.steps == STEPS
    probes = read_responses(responses).probes
    for step in STEPS:
        model = AutoModelForCausalLM.from_pretrained(run / f"checkpoint-{step}", dtype=torch.float64)
        found = []
        for probe in probes:
            ids = torch.from_numpy(np.concatenate([probe.prompt_ids, probe.token_ids]).astype(np.int64))
            with torch.no_grad():
                whole = torch.log_softmax(model(ids[None]).logits[0], dim=-1)
            first = len(probe.prompt_ids)
            found += [float(whole[first + n - 1, token]) for n, token in enumerate(probe.token_ids)]
        np.testing.assert_allclose(store.read_log_probs([step])[0], found, atol=1e-5)
    assert (np.diff(store.read_log_probs(STEPS), axis=0) != 0).any(axis=1).all(), "every step differs"


def test_a_run_a_store_and_explicit_steps_agree(run, trajectories, responses, tmp_path):
    stores = [
        compute(items, responses, tmp_path / str(n)).store
        for n, items in enumerate([[run], [trajectories], [f"{s}={run}/checkpoint-{s}" for s in STEPS]])
    ]
    for store in stores[1:]:
        np.testing.assert_array_equal(store.read_log_probs(STEPS), stores[0].read_log_probs(STEPS))
        np.testing.assert_array_equal(store.read("entropy"), stores[0].read("entropy"))
        assert [s.fingerprint for s in store.token_steps] == [s.fingerprint for s in stores[0].token_steps]


def test_a_run_that_grows_adds_its_steps(run, trajectories, responses, tmp_path):
    out = tmp_path / "t"
    assert compute([run], responses, out, steps="0:100").added == (0, 100)
    before = TokenStore(out).read("entropy")
    plan = plan_log_probs([str(trajectories)], responses, out)
    assert (plan.steps, plan.present) == ((200, 300), (0, 100))
    assert compute_log_probs(plan).added == (200, 300)
    again = compute([run], responses, out)
    assert (again.added, again.present) == ((), STEPS)
    np.testing.assert_array_equal(TokenStore(out).read("entropy"), before)
    whole = compute([run], responses, tmp_path / "whole").store
    np.testing.assert_array_equal(TokenStore(out).read_log_probs(STEPS), whole.read_log_probs(STEPS))


def test_steps_before_an_interruption_are_kept(run, responses, tmp_path, monkeypatch):
    scored = []
    real = log_probs._score

    def interrupted(*args):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(args)
        return real(*args)

    monkeypatch.setattr(log_probs, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compute([run], responses, tmp_path / "t")
    monkeypatch.undo()
    assert TokenStore(tmp_path / "t").steps == STEPS[:2]
    assert compute([run], responses, tmp_path / "t").added == STEPS[2:]


def test_another_checkpoint_of_the_same_step_is_refused(run, responses, tmp_path):
    out = tmp_path / "t"
    compute([run], responses, out)
    other = changed(run, tmp_path / "other", lambda weight: weight.mul_(2))
    with pytest.raises(StepConflictError, match=r"step 100 is in .* which has other weights"):
        plan_log_probs([str(other)], responses, out)
    # A copy has other times and the same content.
    shutil.copytree(run, tmp_path / "copy", copy_function=shutil.copy)
    assert plan_log_probs([str(tmp_path / "copy")], responses, out).present == STEPS


def test_nan_is_named_and_not_stored(run, responses, tmp_path):
    other = changed(run, tmp_path / "other", lambda weight: weight.fill_(float("nan")))
    with pytest.raises(NonFiniteError, match=r"checkpoint-100 gives response \d to problem p\d"):
        compute([other], responses, tmp_path / "t")
    assert TokenStore(tmp_path / "t").steps == (0,)


@pytest.mark.parametrize("batch_tokens", [1, 50])
def test_batches_make_no_difference(batch_tokens, run, responses, tmp_path):
    found = [
        compute([run], responses, tmp_path / str(n), batch_tokens=n).store.read_log_probs(STEPS)
        for n in (8192, batch_tokens)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=2e-6)


def test_bfloat16_is_computed_as_asked(run, responses, tmp_path):
    exact = compute([run], responses, tmp_path / "a").store
    rough = compute([run], responses, tmp_path / "b", dtype="bfloat16").store
    difference = np.abs(exact.read_log_probs(STEPS) - rough.read_log_probs(STEPS)).max()
    assert 1e-5 < difference < 0.1
    assert rough.token_steps[0].engine["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": "50"}, SelectionError, "step 50 of --steps 50 does not exist"),
        ({"engine": "magic"}, SelectionError, "there is no engine 'magic'"),
        ({"device": "abacus"}, InputError, "device 'abacus' cannot be used"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, message, run, responses, tmp_path):
    with pytest.raises(error, match=message):
        compute([run], responses, tmp_path / "t", **options)


def test_a_response_longer_than_the_context_is_refused(run, tmp_path):
    short = tmp_path / "run"
    shutil.copytree(run / "checkpoint-0", short / "checkpoint-0")
    config = json.loads((short / "checkpoint-0/config.json").read_text())
    config["max_position_embeddings"] = 8
    (short / "checkpoint-0/config.json").write_text(json.dumps(config))
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"prompt_ids": [2] * 5, "token_ids": [3] * 4}) + "\n")
    with pytest.raises(InputError, match=r"has 9 tokens, and the model of .* takes 8"):
        plan_log_probs([str(short)], path, tmp_path / "t")


def test_texts_are_tokenised_once_and_kept_as_ids(run, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"prompt": "ab", "response": "cde"}) + "\n")
    store = compute([run], path, tmp_path / "t").store
    assert store.read("token_ids").tolist() == [4, 5, 6]
    assert store.read("prompt_ids").tolist() == [2, 3]
    assert store.record["tokenized_here"]
    assert store.read_json("texts") == {"2": "a", "3": "b", "4": "c", "5": "d", "6": "e"}


def test_the_command_computes_fits_and_draws(run, responses, tmp_path):
    out, figures = tmp_path / "t", tmp_path / "figures"
    shown = call("logprobs", run, "--responses", responses, "--out", out, "--plot", figures)
    assert "104 tokens of 12 responses at 4 steps; 4 computed now" in shown.stdout
    assert "The tokens that move up most" in shown.stdout
    assert sorted(path.name for path in figures.iterdir()) == [
        "token_r2_histogram.png",
        "token_trajectories.png",
    ]
    data = call_json("logprobs", "--out", out, "--csv", tmp_path / "fit.csv")
    assert data["fit"]["groups"][0]["num_tokens"] == 104
    assert len((tmp_path / "fit.csv").read_text().splitlines()) == 1 + len(data["fit"]["groups"])
    planned = call_json("logprobs", run, "--responses", responses, "--out", tmp_path / "new", "--dry-run")
    assert planned["steps"] == list(STEPS)
    assert not (tmp_path / "new").exists()


def test_the_command_says_in_one_sentence_what_it_cannot_do(run, responses, tmp_path):
    assert "a run goes with --responses FILE" in refusal("logprobs", run, "--out", tmp_path / "t")
    assert "holds no store of log-probabilities" in refusal("logprobs", "--out", tmp_path / "t")
    assert "is a URL" in refusal("logprobs", run, "--responses", responses, "--out", "s3://bucket/t")


def test_the_engine_vllm_takes_no_trajectory_store(trajectories, responses, tmp_path):
    pytest.importorskip("vllm", reason="vllm is not installed")
    with pytest.raises(InputError, match="engine vllm loads checkpoints from directories"):
        plan_log_probs([str(trajectories)], responses, tmp_path / "t", engine="vllm")
