"""Problems on their way to verl and back."""

import json
import re
from dataclasses import replace

import pytest
from pyarrow import parquet

from ckptlin.errors import InputError
from ckptlin.problems import Problem, load_problems
from ckptlin.rl.trl.model import load_tokenizer
from ckptlin.rl.verl.prompts import chat_template_of, check_prompts, problem_of, write_prompts

CHAT = "{% for m in messages %}+{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"


@pytest.fixture
def tokenizer(base_model):
    return load_tokenizer(base_model)


def test_rows_are_those_of_verls_data_sets_in_the_order_asked_for(make_config, tmp_path):
    problems = load_problems("sums:train", limit=3)
    write_prompts(tmp_path / "a.parquet", make_config(), problems, [2, 0, 2])
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["extra_info"]["index"] for row in rows] == [2, 0, 2]
    assert rows[1]["prompt"] == [{"role": "user", "content": problems[0].problem}]
    assert rows[1]["reward_model"] == {"style": "rule", "ground_truth": problems[0].answer}
    assert set(rows[1]) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}


def test_a_problem_comes_back_whole(make_config, tmp_path):
    problem = Problem(
        "Solve $x$ – „now“.", "1", "since …", "p1", {"tests": [{"in": "1\n", "n": 2}], "level": None}
    )
    write_prompts(tmp_path / "a.parquet", make_config(), [problem], [0])
    (row,) = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert problem_of(row["extra_info"]) == problem
    # The project's own reader takes verl's layout, so what is written is understood by others too.
    (read,) = load_problems(tmp_path / "a.parquet")
    assert (read.problem, read.answer) == (problem.problem, problem.answer)


def test_a_field_that_is_no_plain_data_is_refused(make_config, tokenizer):
    problem = Problem("1+1=", "2", id="odd", extra={"image": b"\0"})
    with pytest.raises(InputError, match="problem odd cannot be handed on to verl"):
        check_prompts(make_config(), tokenizer, [problem])


@pytest.mark.parametrize("bos", [None, "="])
def test_plain_text_goes_through_verls_chat_template_unchanged(make_config, tokenizer, bos):
    """What verl does with a message, `apply_chat_template`, against what the tokenizer does with the text."""
    config = make_config()
    if bos is not None:
        from tokenizers.processors import TemplateProcessing

        tokenizer.bos_token = bos
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = chat_template_of(config, tokenizer)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "3+7="}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert ids == tokenizer("3+7=")["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) == (bos is not None)


def test_a_chat_keeps_the_tokenizers_own_template(make_config, tokenizer):
    config = make_config(data__template="boxed")  # for a chat, unless data.chat says otherwise
    assert chat_template_of(make_config(data__template="boxed", data__chat=False), tokenizer) is not None
    assert chat_template_of(config, tokenizer) is None
    with pytest.raises(InputError, match="has no chat template"):
        check_prompts(config, tokenizer, load_problems("sums:train", limit=1))
    tokenizer.chat_template = CHAT
    check_prompts(config, tokenizer, load_problems("sums:train", limit=1))


def test_prompts_that_verl_would_cut_are_refused(make_config, tokenizer):
    problems = load_problems("sums:train", limit=3)
    problems = [replace(problems[0], problem="1" * 11), *problems[1:]]
    check_prompts(make_config(sampling__max_prompt_tokens=11), tokenizer, problems)
    with pytest.raises(
        InputError, match=rf"1 of 3 prompts .*problem {re.escape(problems[0].id)}, has 11 tokens"
    ):
        check_prompts(make_config(sampling__max_prompt_tokens=10), tokenizer, problems)


def test_earlier_messages_go_with_a_chat_and_have_no_place_in_plain_text(make_config, tokenizer, tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"prompt": chat, "answer": "2"}))
    problems = load_problems(tmp_path / "chat.jsonl")
    with pytest.raises(InputError, match="earlier chat messages"):
        check_prompts(make_config(), tokenizer, problems)
    write_prompts(tmp_path / "a.parquet", make_config(data__chat=True), problems, [0])
    (row,) = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert row["prompt"] == chat
