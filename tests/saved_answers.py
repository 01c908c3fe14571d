"""Files of saved answers, in the layouts that are read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["PROBLEMS", "answered", "write_evaluation", "write_json", "write_jsonl"]

PROBLEMS = [{"id": f"p{i}", "problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(4)]


def answered(right: int, of: int, answer: str) -> list[str]:
    """Return so many right answers, and the others wrong."""
    return [rf"It is \boxed{{{answer}}}." if i < right else rf"\boxed{{{i}9}}" for i in range(of)]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_json(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text(json.dumps(list(rows)))
    return path


def write_evaluation(directory: Path, labels: Iterable[str], *, grader: str = "math") -> Path:
    """Write an evaluation's directory: four problems, two samples each, all right."""
    (directory / "samples").mkdir(parents=True)
    (directory / "evaluation.json").write_text(json.dumps({"grader": {"name": grader}}))
    write_jsonl(directory / "problems.jsonl", ({**p, "prompt": "?", "prompt_ids": [1]} for p in PROBLEMS))
    for label in labels:
        rows = (
            {"id": p["id"], "sample": s, "seed": s, "text": text, "finished": s == 0, "num_tokens": 3 + s}
            for p in PROBLEMS
            for s, text in enumerate(answered(2, 2, p["answer"]))
        )
        write_jsonl(directory / "samples" / f"{label}.jsonl", rows)
    return directory
