"""Rows as LiveCodeBench has them, made here."""

import base64
import json
import pickle
import zlib
from typing import Any

__all__ = ["livecodebench_row"]


def livecodebench_row(
    question_id: str, date: str, *, starter_code: str = "", private: bool = True
) -> dict[str, Any]:
    """Make a row: to double a number, read from stdin, or as a method if there is starter code."""
    kind = "functional" if starter_code else "stdin"
    public, hidden = ([{"input": i, "output": o, "testtype": kind}] for i, o in (("2", "4"), ("3", "6")))
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(hidden)))).decode()
    return {
        "question_title": "Double",
        "question_content": f"Double a number ({question_id}).\n",
        "platform": "leetcode" if starter_code else "atcoder",
        "question_id": question_id,
        "contest_id": "c1",
        "contest_date": f"{date}T00:00:00",
        "starter_code": starter_code,
        "difficulty": "easy",
        "public_test_cases": json.dumps(public),
        "private_test_cases": packed if private else "",
        "metadata": json.dumps({"func_name": "double"} if starter_code else {}),
    }
