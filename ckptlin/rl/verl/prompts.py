"""Problems as verl reads them: parquet, chat messages, and all that a grader needs in ``extra_info``.

Each launch gets a file of its own, which begins at its position in the data stream.  verl's own memory of the
position, ``data.pt``, is not used: it belongs to a checkpoint whose weights are not those that follow a jump.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckptlin.errors import InputError
from ckptlin.problems import Problem, PromptTemplate, get_template, load_problems
from ckptlin.rl.config import TrainConfig

__all__ = ["chat_template_of", "check_prompts", "load", "problem_of", "write_prompts"]

# verl always goes through a chat template; this one leaves the text as it is.
_PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"


def load(config: TrainConfig) -> tuple[Problem, ...]:
    """Load the problems that are trained on."""
    return load_problems(config.data.source, limit=config.data.limit)


def template_of(config: TrainConfig) -> PromptTemplate:
    """Return how a problem is put to the model."""
    return get_template(config.data.template, chat=config.data.chat)


def chat_template_of(config: TrainConfig, tokenizer: Any) -> str | None:
    """Return the chat template with which verl makes of a prompt what the configuration says.

    Returns
    -------
    str or None
        None for the tokenizer's own.  For plain text, one that adds nothing but what the tokenizer itself puts
        before a text.
    """
    if template_of(config).chat:
        return None
    begins = tokenizer.bos_token_id is not None and tokenizer("0")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + _PLAIN


def check_prompts(config: TrainConfig, tokenizer: Any, problems: Sequence[Problem]) -> None:
    """Refuse prompts that verl would cut off at their beginning, and a chat without a template.

    Raises
    ------
    InputError
        If the longest prompt has more tokens than ``sampling.max_prompt_tokens``, the tokenizer has no chat
        template where one is needed, or a problem cannot be written down.
    """
    template = template_of(config)
    if template.chat and not tokenizer.chat_template:
        raise InputError(
            f"prompt template `{template.name}` is for a chat, but the tokenizer of model `{config.model}` "
            "has no chat template; set data.chat=false"
        )
    limit = config.sampling.max_prompt_tokens
    longest, most, num_over = "", 0, 0
    own = chat_template_of(config, tokenizer)
    for problem in problems:
        _row(problem, 0, template)
        ids = tokenizer.apply_chat_template(
            template.messages(problem),
            chat_template=own,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        num_over += len(ids) > limit
        if len(ids) > most:
            longest, most = problem.id, len(ids)
    if num_over:
        raise InputError(
            f"{num_over:,} of {len(problems):,} prompts are longer than sampling.max_prompt_tokens ({limit}), "
            f"the longest, problem {longest}, has {most} tokens; raise the limit, or remove them from the data"
        )


def write_prompts(path: Path, config: TrainConfig, problems: Sequence[Problem], order: Iterable[int]) -> None:
    """Write problems in an order as a parquet file for verl.

    Parameters
    ----------
    path : Path
    config : TrainConfig
    problems : sequence of Problem
    order : iterable of int
        Index of the problem of each row.
    """
    import pyarrow
    from pyarrow import parquet

    template = template_of(config)
    rows = [_row(problems[i], int(i), template) for i in order]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def problem_of(extra_info: Mapping[str, Any]) -> Problem:
    """Return the problem of a row that `write_prompts` wrote."""
    return Problem(**json.loads(extra_info["problem"]))


def _row(problem: Problem, index: int, template: PromptTemplate) -> dict[str, Any]:
    if not template.chat:
        template.prompt(problem)  # earlier messages have no place in plain text
    try:
        text = json.dumps(asdict(problem), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"problem {problem.id} cannot be handed on to verl, since a field of it is no plain data: {error}; "
            "convert the field, or remove it"
        ) from None
    return {
        "data_source": "ckptlin",
        "prompt": template.messages(problem),
        "ability": "ckptlin",
        "reward_model": {"style": "rule", "ground_truth": problem.answer or ""},
        "extra_info": {"index": index, "problem": text},
    }
