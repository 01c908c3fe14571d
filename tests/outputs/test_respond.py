"""The probes: one model answers, every response is kept as ids, and a killed command goes on."""

import json
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptlin.demo import base_model
from ckptlin.evaluate.sampling import Sampling
from ckptlin.outputs.responses import read_responses
from tests.command_line import call, call_json, refusal


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """Three checkpoints near the demo's model."""
    run = tmp_path_factory.mktemp("demo") / "run"
    torch.manual_seed(0)
    for step in (0, 10, 20):
        shutil.copytree(base_model(), run / f"checkpoint-{step}")
        path = run / f"checkpoint-{step}/model.safetensors"
        weights = {name: w + 1e-4 * step * torch.randn_like(w) for name, w in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    return run


def ask(run, out, *more):
    return (
        "responses",
        run,
        "--task",
        "sums",
        "--limit",
        "3",
        "--samples",
        "4",
        "--engine",
        "hf",
        "--out",
        out,
        *more,
    )


def test_the_first_checkpoint_answers_and_ids_are_kept(demo_run, tmp_path):
    from transformers import AutoTokenizer

    out = tmp_path / "r.jsonl"
    assert call_json(*ask(demo_run, out))["num_added"] == 12
    tokenizer = AutoTokenizer.from_pretrained(base_model())
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for row in rows:
        assert tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["text"]
        assert row["prompt_ids"] == tokenizer(f"{row['id']}=")["input_ids"]
        assert row["seed"] == Sampling().seed_of(row["id"], row["sample"])
        assert row["finished"] == (row["token_ids"][-1] == tokenizer.eos_token_id)
    assert len({(row["id"], row["sample"]) for row in rows}) == 12
    assert json.loads(out.with_suffix(".json").read_text())["step"] == 0
    assert len(read_responses(out).probes) == 12


def test_a_killed_command_goes_on_with_the_same_responses(demo_run, tmp_path):
    out = tmp_path / "r.jsonl"
    call(*ask(demo_run, out))
    whole = out.read_text().splitlines()
    out.write_text("\n".join(whole[:5]) + "\n" + whole[5][:20])
    assert call_json(*ask(demo_run, out, "--dry-run"))["num_missing"] == 7
    assert call_json(*ask(demo_run, out))["num_added"] == 7
    assert sorted(out.read_text().splitlines()) == sorted(whole)
    assert call_json(*ask(demo_run, out))["num_added"] == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--temperature", "0.5"), "were begun with sampling"),
        (("--steps", "10"), "were begun with model"),
        (("--limit", "2"), "were begun with problems"),
    ],
)
def test_responses_of_other_settings_are_not_mixed(change, expected, demo_run, tmp_path):
    out = tmp_path / "r.jsonl"
    call(*ask(demo_run, out))
    before, record = out.read_bytes(), out.with_suffix(".json").read_bytes()
    assert expected in refusal(*ask(demo_run, out, *change))
    assert out.read_bytes() == before
    call(*ask(demo_run, out, *change, "--overwrite"))
    assert out.with_suffix(".json").read_bytes() != record


def test_what_is_missing_is_said(demo_run, tmp_path):
    assert "give --task NAME or --data FILE" in refusal("responses", demo_run, "--out", tmp_path / "r.jsonl")
    assert "must end in .jsonl" in refusal(*ask(demo_run, tmp_path / "r.json"))
    assert "make" in refusal(*ask(demo_run, tmp_path / "nowhere/r.jsonl"))
    (tmp_path / "r.jsonl").write_text("")
    assert "which says what it depends on, is not" in refusal(*ask(demo_run, tmp_path / "r.jsonl"))


def test_the_examples_of_both_commands_work(demo_run, tmp_path, monkeypatch):
    shutil.copytree(demo_run, tmp_path / "run")
    (tmp_path / "problems.jsonl").write_text('{"problem": "1+1+1+1+1=", "answer": "2;3;4;5"}\n')
    monkeypatch.chdir(tmp_path)
    for name in ("responses", "logprobs"):
        examples = call(name, "--help").stdout.partition("\nExamples:\n")[2].strip().splitlines()
        assert len(examples) == 2
        for example in examples:
            assert call(*shlex.split(example)[1:]).stdout
    assert (tmp_path / "figures/token_r2_histogram.png").stat().st_size > 10_000
