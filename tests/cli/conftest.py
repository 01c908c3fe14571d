import shutil
from pathlib import Path

import ml_dtypes
import pytest

from ckptlin.fit import fit
from ckptlin.ingest import ingest
from tests.runs import save_checkpoint, weights_at
from tests.saved_answers import PROBLEMS, answered, write_json, write_jsonl

MODEL = {
    "model.embed_tokens.weight": ((12, 4), ml_dtypes.bfloat16),
    **{
        f"model.layers.{layer}.{name}.weight": (shape, ml_dtypes.bfloat16)
        for layer in (0, 1)
        for name, shape in (("mlp.up_proj", (4, 6)), ("input_layernorm", (4,)))
    },
}


@pytest.fixture(scope="session")
def _prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("commands")
    for step in range(0, 1001, 100):
        save_checkpoint(root / "run" / f"checkpoint-{step}", weights_at(step, MODEL))
    for name, step in (("base", 0), ("a", 100), ("b", 200)):
        save_checkpoint(root / name, weights_at(step, MODEL))
    (root / "gsm8k.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "1 + 1 = 2\\n#### 2"}\n')
    for name, right in (("answers.jsonl", 2), ("before.json", 1), ("after.json", 3)):
        rows = ({**p, "responses": answered(right, 4, p["answer"])} for p in PROBLEMS)
        (write_jsonl if name.endswith("jsonl") else write_json)(root / name, rows)
    write_jsonl(root / "problems.jsonl", PROBLEMS)
    fit(ingest(root / "run", root / "run.store").store)
    (root / "run.yaml").write_text("model: ./base\ndata: {source: sums:train}\n")
    return root


@pytest.fixture
def here(_prepared, tmp_path, monkeypatch) -> Path:
    """The current directory, with what the examples of all commands speak of.

    A run of 11 checkpoints at ``run``, its store with a fit at ``run.store``, three of its checkpoints at
    ``base``, ``a`` and ``b``; a problem as GSM8K has it at ``gsm8k.jsonl``, and a configuration of a training
    at ``run.yaml``; saved answers to the four problems of ``problems.jsonl`` at ``answers.jsonl``,
    ``before.json`` and ``after.json``.
    """
    shutil.copytree(_prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
