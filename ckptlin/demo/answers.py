"""What a checkpoint writes, to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptlin.demo.corpus import longest_completion
from ckptlin.demo.isolation import undisturbed
from ckptlin.problems import Problem
from ckptlin.problems.sums import END

__all__ = ["Answer", "write_answers"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote to a prompt, its end included."""

    prompt: str
    text: str
    expected: str

    @property
    def is_right(self) -> bool:
        """Whether it is the whole answer."""
        return self.text == self.expected

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"prompt": self.prompt, "text": self.text, "expected": self.expected, "is_right": self.is_right}


def write_answers(checkpoint: Path, problems: Sequence[Problem], *, seed: int) -> tuple[Answer, ...]:
    """Load a checkpoint and its tokenizer as anyone would, and let it answer sums at temperature 1."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    answers = []
    with undisturbed(seed):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        for problem in problems:
            inputs = torch.tensor([tokenizer(problem.problem)["input_ids"]])
            with torch.inference_mode():
                written = model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=longest_completion(problem.problem.count("+") + 1),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                )
            text: str = tokenizer.decode(written[0, inputs.shape[1] :])
            answers.append(Answer(problem.problem, text, f"{problem.answer}{END}"))
    return tuple(answers)
